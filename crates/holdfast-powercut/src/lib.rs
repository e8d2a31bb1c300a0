//! Random workloads on a volume whose disk, or the legs of whose mirror, lose their caches when the power
//! is cut: at every event of the disks the power is cut, the volume is opened again, and every sector is judged.
//!
//! What must be there is known from what was answered and when ([`check()`] for one seed). Nothing
//! that was durable may be gone, nothing may be read that nobody wrote, and nothing that is intact may
//! be called corrupt. A seed stands for the format, the workload, what fails below, and what each cut
//! leaves, so that it is the same again.

#![forbid(unsafe_code)]

mod alarm;
mod check;
mod content;
mod flip;
mod judge;
mod lane;
mod model;
mod plan;
mod report;
mod rig;
mod run;

pub use alarm::Alarm;
pub use check::{Outcome, check};
pub use report::{Counts, Table};
