//! Why a mirror cannot be used.

use holdfast_bio::Error;
use thiserror::Error as ThisError;

/// Why a mirror cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
#[non_exhaustive]
pub enum MirrorError {
    /// Two legs were each written without the other.
    #[error(
        "split brain: {first} ({first_state}) and {second} ({second_state}) were each written without \
         the other. Choose the one to throw away, and let the other replace it: `holdfast attach \
         --discard {first} {second}` keeps {first}, and `holdfast attach --discard {second} {first}` \
         keeps {second}"
    )]
    SplitBrain {
        /// The path of one.
        first: String,
        /// Its generation, and when it was changed last.
        first_state: String,
        /// The path of the other.
        second: String,
        /// Its generation, and when it was changed last.
        second_state: String,
    },
    /// No leg that can be reached is known to hold everything.
    #[error(
        "{path} is a leg that is {state} since generation {generation}, and no other leg can be reached"
    )]
    NoLeg {
        /// The leg that was named.
        path: String,
        /// What it is.
        state: &'static str,
        /// The generation of its record.
        generation: u64,
    },
    /// The path of a leg is too long to be remembered.
    #[error("the path {path} is longer than the 200 bytes that a mirror remembers")]
    Path {
        /// The path.
        path: String,
    },
    /// There are as many legs as there can be.
    #[error("the mirror has 4 legs already: detach one first")]
    Full,
    /// The leg is not what it has to be for this.
    #[error("{path} is {state}, and cannot be {what}")]
    State {
        /// The leg.
        path: String,
        /// What it is.
        state: &'static str,
        /// What was to be done.
        what: &'static str,
    },
    /// The mirror would have no good leg left.
    #[error("{path} is the only leg that holds everything, and cannot be detached")]
    Last {
        /// The leg.
        path: String,
    },
    /// A leg failed.
    #[error("cannot {what}: {source}")]
    Device {
        /// What was being done.
        what: &'static str,
        /// What the device said.
        source: Error,
    },
}
