//! The node agent: it looks at its node's block devices and mounts and reports what it sees; it changes nothing there.
//!
//! [`guest`] is the look (plain functions over a host's file tree), [`news`] what the kernel says unasked, [`report`] the
//! loop that writes it into the node's own `NodeVolumeReport` and answers the controller's challenges. This crate knows no cloud and holds no cloud
//! credential.

pub mod guest;
pub mod news;
pub mod report;
pub mod rights;

pub use guest::{HostRoot, Scan, ScanError, answer, scan};
pub use news::News;
pub use report::{AgentConfig, ScanOn, run, run_with_news};
