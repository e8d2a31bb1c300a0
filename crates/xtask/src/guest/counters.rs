//! What `holdfast info --live --json` counts, added up over all clients and queues.

use std::fmt;
use std::ops::AddAssign;

use anyhow::{Context, Result};
use serde_json::Value;

const NAMES: [&str; 10] = [
    "requests",
    "bytes",
    "bounced",
    "zero_copy",
    "reread_good",
    "reread_bad",
    "failed",
    "guard_errors",
    "application_errors",
    "reference_errors",
];

/// Where in `NAMES` those begin that must stay 0 while nothing is wrong.
const ERRORS: usize = 5;

/// The counters of a server since its start, in the order of `NAMES`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters([u64; NAMES.len()]);

impl Counters {
    /// Adds up every queue in the JSON, be there none; fails when one lacks a counter.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let json: Value = serde_json::from_str(text).context("info --live printed no JSON")?;
        let mut queues = Vec::new();
        find_queues(&json, &mut queues);
        let mut all = Self::default();
        for queue in queues {
            all += Self::of_queue(queue)?;
        }
        Ok(all)
    }

    fn of_queue(queue: &Value) -> Result<Self> {
        let mut counters = Self::default();
        for (count, name) in counters.0.iter_mut().zip(NAMES) {
            *count = queue[name]
                .as_u64()
                .with_context(|| format!("info --live: a queue without {name}: {queue}"))?;
        }
        Ok(counters)
    }

    pub(super) const fn requests(&self) -> u64 {
        self.0[0]
    }

    /// How often something went wrong.
    pub(super) fn errors(&self) -> u64 {
        self.0[ERRORS..].iter().sum()
    }
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.0.iter_mut().zip(other.0).for_each(|(count, more)| *count += more);
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = NAMES.iter().zip(self.0).map(|(name, count)| format!("{name} {count}"));
        f.write_str(&counts.collect::<Vec<_>>().join(", "))
    }
}

/// Every object with counters, wherever it is.
fn find_queues<'a>(json: &'a Value, found: &mut Vec<&'a Value>) {
    match json {
        Value::Object(fields) if fields.contains_key(NAMES[0]) => found.push(json),
        Value::Object(fields) => fields.values().for_each(|value| find_queues(value, found)),
        Value::Array(values) => values.iter().for_each(|value| find_queues(value, found)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn queue(requests: u64, guard_errors: u64) -> Value {
        json!({
            "requests": requests, "failed": 0, "bytes": requests * 4096, "bounced": 1,
            "zero_copy": 2, "reread_good": 3, "reread_bad": 0, "guard_errors": guard_errors,
            "application_errors": 0, "reference_errors": 0,
        })
    }

    #[test]
    fn the_queues_of_all_clients_are_added_up() {
        let json = json!({ "clients": [
            { "queues": [queue(10, 0), queue(20, 1)] },
            { "queues": [queue(30, 2)] },
        ]});
        let counters = Counters::parse(&json.to_string()).unwrap();
        assert_eq!((counters.requests(), counters.errors()), (60, 3));
    }

    #[test]
    fn a_read_that_was_good_the_second_time_is_no_error() {
        let counters = Counters::parse(&queue(10, 0).to_string()).unwrap();
        assert_eq!(counters.errors(), 0);
    }

    #[test]
    fn a_missing_counter_is_an_error() {
        let mut queue = queue(10, 0);
        queue.as_object_mut().unwrap().remove("guard_errors");
        let error = Counters::parse(&json!([queue]).to_string()).unwrap_err();
        assert!(error.to_string().contains("a queue without guard_errors"), "{error}");
    }

    #[test]
    fn a_server_without_clients_has_counted_nothing() {
        assert_eq!(Counters::parse(r#"{"clients": []}"#).unwrap(), Counters::default());
    }
}
