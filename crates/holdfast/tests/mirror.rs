//! Mirrors as a user makes, breaks and mends them.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

/// A directory in which the program is run.
struct Scene(tempfile::TempDir);

/// A running server. It is killed if a test ends before it is stopped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended, and then there is nothing to do.
        let _killed = self.0.kill();
        let _ended = self.0.wait();
    }
}

impl Scene {
    /// Makes a volume with an image in it, on legs `a`, `b` and whatever else is named.
    fn new(legs: &[&str]) -> Self {
        let scene = Self(tempfile::tempdir().expect("a temporary directory"));
        let mirrors: Vec<&str> = legs.iter().flat_map(|leg| ["--mirror", leg]).collect();
        scene.ok(&[&["create", "a", "--size", "8M"][..], &mirrors].concat());
        let bytes: Vec<u8> = (0..8 << 20).map(|at: u32| at.to_le_bytes()[1] | 1).collect();
        fs::write(scene.path("image"), bytes).expect("space for an image");
        scene.ok(&["import", "image", "a", "--force"]);
        scene
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut program = Command::new(env!("CARGO_BIN_EXE_holdfast"));
        program.args(arguments).current_dir(self.0.path()).output().expect("it runs")
    }

    /// Runs the program, which must exit with this code, and returns what it said.
    fn code(&self, arguments: &[&str], code: i32) -> String {
        let output = self.run(arguments);
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        said
    }

    fn ok(&self, arguments: &[&str]) -> String {
        self.code(arguments, 0)
    }

    /// Serves a volume, and waits until that is so.
    fn serve(&self, volume: &str) -> Server {
        let mut program = Command::new(env!("CARGO_BIN_EXE_holdfast"));
        program.args(["serve", volume]).current_dir(self.0.path()).stdout(Stdio::piped());
        let mut server = Server(program.spawn().expect("it runs"));
        let said = BufReader::new(server.0.stdout.take().expect("its output"));
        let listens = said.lines().any(|line| line.is_ok_and(|line| line.contains("listening")));
        assert!(listens, "the server listens");
        server
    }

    /// Asks a server to end, which must leave nothing undone.
    fn stop(mut server: Server) {
        let pid = rustix::process::Pid::from_child(&server.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it is there");
        assert!(server.0.wait().expect("it ends").success());
    }

    /// Returns the states of the legs.
    fn states(&self, volume: &str) -> Vec<String> {
        let output = self.run(&["info", "--json", volume]);
        let info: Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
        let legs = info["legs"].as_array().expect("it is a mirror");
        legs.iter().map(|leg| leg["state"].as_str().expect("a state").to_owned()).collect()
    }

    /// Overwrites sectors of a leg.
    fn rot(&self, leg: &str, lbas: std::ops::Range<u64>) {
        let file = OpenOptions::new().write(true).open(self.path(leg)).expect("the leg");
        for lba in lbas {
            file.write_all_at(&[0xee; 512], FIRST_DATA + lba * 4096).expect("a sector");
        }
    }

    /// Checks that the image can be had from a leg, and that all legs are the same.
    fn assert_whole(&self, legs: &[&str]) {
        let found = self.ok(&["export", legs[0], "found", "--force"]);
        let read = |name: &str| fs::read(self.path(name)).expect("a file");
        assert!(read("found") == read("image"), "{found}");
        let of_leg = |leg: &&str| {
            let mut bytes = read(leg);
            bytes[256 << 10..512 << 10].fill(0);
            bytes
        };
        assert!(legs.iter().all(|leg| of_leg(leg) == of_leg(&legs[0])), "legs differ");
    }
}

/// Where the data of the first group are.
const FIRST_DATA: u64 = (3 << 20) + 4096;

#[test]
fn what_rots_on_each_leg_is_verified_repaired_and_counted() {
    let scene = Scene::new(&["b"]);
    scene.rot("a", 0..10);
    scene.rot("b", 10..30);
    let said = scene.code(&["verify", "b"], 1);
    assert!(said.contains("30 sectors were bad on a leg and intact on another"), "{said}");
    scene.ok(&["verify", "--repair", "a"]);
    scene.ok(&["verify", "a"]);
    scene.assert_whole(&["a", "b"]);
    let said = scene.ok(&["info", "a"]);
    assert!(said.contains("/a: in sync, 10 repairs, 0 errors"), "{said}");
    assert!(said.contains("/b: in sync, 20 repairs, 0 errors"), "{said}");
}

#[test]
fn what_rots_on_all_legs_is_named_and_an_error() {
    let scene = Scene::new(&["b"]);
    scene.rot("a", 3..5);
    scene.rot("b", 4..6);
    let said = scene.code(&["verify", "--repair", "a"], 1);
    assert!(said.contains("guard tag mismatch at LBA 4:") && said.contains("1 corrupt"), "{said}");
    scene.code(&["export", "a", "found"], 1);
}

#[test]
fn a_leg_that_was_away_comes_back_and_a_new_one_gets_everything() {
    let scene = Scene::new(&["b"]);
    fs::rename(scene.path("b"), scene.path("away")).expect("it is there");
    let said = scene.ok(&["import", "image", "a", "--force"]);
    assert!(said.contains("/b is out of the mirror"), "{said}");
    fs::rename(scene.path("away"), scene.path("b")).expect("it is there");
    assert_eq!(scene.states("b"), ["in sync", "out"]);
    scene.ok(&["attach", "a", "b"]);
    scene.ok(&["attach", "b", "c"]);
    assert_eq!(scene.states("c"), ["in sync", "in sync", "in sync"]);
    scene.assert_whole(&["c", "a", "b"]);
    let said = scene.code(&["attach", "a", "b"], 2);
    assert!(said.contains("is in sync, and cannot be attached"), "{said}");
}

#[test]
fn a_leg_that_is_detached_is_not_used_alone() {
    let scene = Scene::new(&["b"]);
    scene.ok(&["detach", "a", "b"]);
    assert_eq!(scene.states("a"), ["in sync", "detached"]);
    fs::rename(scene.path("a"), scene.path("away")).expect("it is there");
    let said = scene.code(&["verify", "b"], 2);
    assert!(said.contains("is a leg that is detached since generation"), "{said}");
    fs::rename(scene.path("away"), scene.path("a")).expect("it is there");
    let said = scene.code(&["detach", "a", "a"], 2);
    assert!(said.contains("the only leg that holds everything"), "{said}");
    scene.ok(&["attach", "a", "b"]);
    scene.assert_whole(&["b", "a"]);
}

#[test]
fn a_split_brain_is_refused_until_one_is_thrown_away() {
    let scene = Scene::new(&["b"]);
    for (away, alone) in [("b", "a"), ("a", "b")] {
        fs::rename(scene.path(away), scene.path("away")).expect("it is there");
        scene.ok(&["import", "image", alone, "--force"]);
        fs::rename(scene.path("away"), scene.path(away)).expect("it is there");
    }
    for command in [&["verify", "a"][..], &["serve", "b"], &["info", "a"]] {
        let said = scene.code(command, 2);
        assert!(said.contains("split brain") && said.contains("attach --discard"), "{said}");
    }
    scene.ok(&["attach", "--discard", "b", "a"]);
    assert_eq!(scene.states("a"), ["in sync", "in sync"]);
    scene.assert_whole(&["a", "b"]);
}

#[test]
fn what_cannot_be_a_leg_is_refused_and_left_as_it_is() {
    let scene = Scene::new(&["b"]);
    scene.ok(&["create", "other", "--size", "8M"]);
    let before = fs::read(scene.path("other")).expect("a volume");
    let said = scene.code(&["attach", "a", "other"], 2);
    assert!(said.contains("is not empty, and no leg of this mirror: --discard"), "{said}");
    assert!(fs::read(scene.path("other")).expect("a volume") == before);
    fs::write(scene.path("small"), [0; 4096]).expect("space");
    let said = scene.code(&["attach", "a", "small", "--discard"], 2);
    assert!(said.contains("cannot be a leg: it has 4096 bytes"), "{said}");
    let said = scene.code(&["attach", "other", "b"], 2);
    assert!(said.contains("is no mirror"), "{said}");
    let said = scene.code(&["create", "new", "--size", "8M", "--mirror", "a"], 2);
    assert!(said.contains("File exists") && !Path::exists(&scene.path("new")), "{said}");
    let said = scene.code(&["verify", "--repair", "other"], 2);
    assert!(said.contains("is no mirror, so nothing can be repaired"), "{said}");
    scene.assert_whole(&["a", "b"]);
}

#[test]
fn legs_come_and_go_while_the_volume_is_served() {
    let scene = Scene::new(&["b"]);
    let server = scene.serve("a");
    for (command, leg) in [("detach", "b"), ("attach", "b"), ("attach", "c"), ("detach", "a")] {
        scene.ok(&[command, "b", leg]);
    }
    let said = scene.code(&["detach", "b", "nothing"], 2);
    assert!(
        said.contains("refuses") && said.contains("is no leg, and cannot be detached"),
        "{said}"
    );
    fs::write(scene.path("other"), vec![1; 16 << 20]).expect("space");
    let said = scene.code(&["attach", "b", "other"], 2);
    assert!(said.contains("says: ") && said.contains("is not empty, and no leg"), "{said}");
    let said = scene.ok(&["info", "--live", "b"]);
    assert!(said.contains("/a: detached") && said.contains("/c: in sync"), "{said}");
    Scene::stop(server);
    scene.assert_whole(&["c", "b"]);
    scene.ok(&["attach", "b", "a"]);
    scene.assert_whole(&["a", "b", "c"]);
}

#[test]
fn a_policy_that_writes_memory_that_changes_is_refused_for_a_mirror() {
    let scene = Scene::new(&["b"]);
    let said = scene.code(&["serve", "a", "--read-policy", "never"], 2);
    assert!(said.contains("the legs of a mirror would differ"), "{said}");
}
