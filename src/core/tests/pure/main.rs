//! Tests of the pure core: tables, properties and explored state spaces. One binary, so that it links once.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::type_complexity
)] // Tests may panic and take the time.

mod authority;
mod awaiting;
mod before_effects;
mod budgets;
mod check;
mod classes;
mod clocks;
mod consent;
mod deadlines;
mod diagnosis;
mod edges;
mod explore;
mod fences;
mod freeing;
mod gaps;
mod hash;
mod holding;
mod identity;
mod journal;
mod kept_off;
mod late;
mod losses;
mod lost_replies;
mod once;
mod owner_tags;
mod pinned;
mod proof;
mod properties;
mod questions;
mod refusals;
mod retries;
mod run;
mod runbook;
mod scaling;
mod schedules;
mod snapshots;
mod sound;
mod stamps;
mod state_reads;
mod steps;
mod touched_records;
mod under_the_taint;
mod unwinding;
mod verifying;
mod vetted;
mod walk;
mod withheld;
mod world;
