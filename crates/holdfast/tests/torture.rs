//! `holdfast torture` as a user runs it, in short.

use std::process::{Command, Output};

use serde_json::Value;

fn torture(arguments: &[&str]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    program.arg("torture").args(arguments).output().expect("it runs")
}

/// Returns what `--json` says of the only policy, of a run that found nothing wrong.
fn row(arguments: &[&str]) -> Value {
    let output = torture(&[arguments, &["--json", "--seed", "7"]].concat());
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let json: Value = serde_json::from_str(&said).expect("it is JSON");
    json["policies"][0].clone()
}

#[test]
fn the_table_has_a_row_for_each_policy_and_says_what_never_shows() {
    let output = torture(&["--requests", "300", "--sector", "512"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    let begins = |name: &str| said.lines().any(|line| line.starts_with(name));
    assert!(["policy ", "always ", "lazy ", "never "].into_iter().all(begins), "{said}");
    assert!(said.contains("never is for measuring"), "{said}");
}

#[test]
fn corrupt_sectors_are_found_and_not_delivered() {
    let row = row(&["--corrupt", "--requests", "1000", "--queues", "1", "--policy", "lazy"]);
    let corrupted = &row["corrupted"];
    assert!(corrupted["injected"].as_u64() > Some(0), "{row}");
    assert_eq!((&corrupted["delivered"], &row["requests"]), (&0.into(), &1000.into()), "{row}");
}

#[test]
fn a_server_that_is_killed_loses_nothing() {
    let row = row(&["--kills", "4", "--policy", "always", "--guard", "crc16"]);
    assert_eq!((&row["kills"], &row["bad_guards"]), (&4.into(), &0.into()), "{row}");
}
