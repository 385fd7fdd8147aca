//! The specification of reattach as code: what a stuck volume is, what may be done about it, and in which order.
//!
//! Everything here is a function of values. Nothing in this crate reads a clock, draws randomness, or does input or
//! output: `now` is always an argument. The crates around it gather [`evidence::Evidence`], perform
//! [`run::Effect`]s and store the [`journal`].

pub mod authority;
pub mod budget;
pub mod check;
pub mod cloud;
pub mod diagnosis;
pub mod evidence;
pub mod fact;
pub mod guest;
pub mod hold;
pub mod identity;
pub mod ids;
pub mod journal;
pub mod loss;
pub mod names;
pub mod outage;
pub mod phase;
pub mod plain;
pub mod plan;
pub mod policy;
pub mod product;
pub mod proof;
pub mod run;
pub mod runbook;
pub mod stamp;
pub mod steps;
#[cfg(feature = "testkit")]
pub mod testkit;
pub mod workload;
