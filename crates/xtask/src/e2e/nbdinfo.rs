//! What the server says of itself, and its map of holes.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Outcome;
use super::scene::Scene;
use super::server::Server;
use crate::run::command;

const SIZE: u64 = 64 << 20;
const DATA_START: u64 = 16 << 20;
const DATA_LEN: u64 = 1 << 20;
/// How much more than was written may count as data.
const SLACK: u64 = 4 << 20;

/// What an export can do, by nbdinfo's names.
const ABILITIES: &[&str] = &[
    "can_cache",
    "can_fast_zero",
    "can_flush",
    "can_fua",
    "can_multi_conn",
    "can_trim",
    "can_zero",
];

pub(super) fn run(scene: &Scene) -> Result<Outcome> {
    let volume = scene.path("volume.hf");
    let server = Server::create(scene, &volume, &SIZE.to_string(), &[])?;
    let uri = server.uri();

    let info = json(scene, &["--json", &uri])?;
    ensure!(info["structured"] == true, "no structured replies: {info}");
    let export = &info["exports"][0];
    ensure!(export["export-size"] == SIZE, "another size than {SIZE}: {export}");
    ensure!(export["block_size_minimum"] == 512, "another smallest block than 512: {export}");
    ensure!(export["is_read_only"] == false, "read only: {export}");
    for ability in ABILITIES {
        ensure!(export[*ability] == true, "{ability} is not true: {export}");
    }

    let map = json(scene, &["--map", "--json", &uri])?;
    ensure!(data(&map)?.is_empty(), "a fresh volume is not one hole: {map}");
    let write = format!("write -P 0x5a {DATA_START} {DATA_LEN}");
    scene.ok(&mut command("qemu-io", &["-f", "raw", "-c", &write, &uri]))?;
    let map = json(scene, &["--map", "--json", &uri])?;
    let data = data(&map)?;
    let covers =
        data.iter().any(|(start, end)| *start <= DATA_START && DATA_START + DATA_LEN <= *end);
    ensure!(covers, "the map calls data a hole: {map}");
    let total: u64 = data.iter().map(|(start, end)| end - start).sum();
    ensure!(total <= DATA_LEN + SLACK, "the map has no holes: {map}");

    server.stop()?;
    scene.verify(&volume)?;
    Ok(Outcome::Passed)
}

fn json(scene: &Scene, arguments: &[&str]) -> Result<Value> {
    let text = scene.ok(&mut command("nbdinfo", arguments))?;
    serde_json::from_str(&text).context("nbdinfo printed no JSON")
}

/// The ranges of a map that are not holes, joined where they touch.
fn data(map: &Value) -> Result<Vec<(u64, u64)>> {
    const HOLE: u64 = 1;
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for extent in map.as_array().context("the map is no array")? {
        let number =
            |key: &str| extent[key].as_u64().with_context(|| format!("no {key} in {extent}"));
        let (start, end) = (number("offset")?, number("offset")? + number("length")?);
        if number("type")? & HOLE != 0 {
            continue;
        }
        match ranges.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => ranges.push((start, end)),
        }
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pieces_of_data_that_touch_are_one_range() {
        let map = json!([
            { "offset": 0, "length": 4, "type": 3 },
            { "offset": 4, "length": 4, "type": 0 },
            { "offset": 8, "length": 4, "type": 2 },
            { "offset": 12, "length": 4, "type": 1 },
            { "offset": 16, "length": 4, "type": 0 },
        ]);
        assert_eq!(data(&map).unwrap(), [(4, 12), (16, 20)]);
    }
}
