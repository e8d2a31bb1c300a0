//! How long processors have worked, as proc(5) tells it.

/// What is told of a process.
pub(super) struct Process {
    pub(super) parent: u32,
    /// The time of all its threads, in the kernel as well, in seconds.
    pub(super) cpu: f64,
}

impl Process {
    /// Takes it from `/proc/PID/stat`; `None` for what is no such line.
    pub(super) fn parse(stat: &str) -> Option<Self> {
        const TICKS_PER_SECOND: f64 = 100.0;
        // The name of the program may have anything in it, parentheses included.
        let (_, rest) = stat.rsplit_once(") ")?;
        let mut words = rest.split(' ').skip(1);
        let parent = words.next()?.parse().ok()?;
        let ticks = words.skip(9).take(2).map(str::parse::<f64>);
        Some(Self { parent, cpu: ticks.sum::<Result<f64, _>>().ok()? / TICKS_PER_SECOND })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_program_is_not_taken_for_a_field() {
        let line = "7 (a) 3 (b) S 2 7 7 0 -1 4 1 0 0 0 250 150 9 9 20 0 1 0 5\n";
        let process = Process::parse(line).unwrap();
        assert_eq!((process.parent, process.cpu), (2, 4.0));
        assert!(Process::parse("7 (a S 2").is_none());
    }
}
