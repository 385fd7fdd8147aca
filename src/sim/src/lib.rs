//! A Kubernetes cluster in memory and in virtual time: API server, toy controllers and kubelets.
//!
//! It behaves as a stock cluster was measured to behave where volumes are concerned, so that the shipped controller,
//! executor and agents can be run against failures that take hours on real machines, repeatably, from a seed.

pub mod apiserver;
pub mod clock;
pub mod cloud;
pub mod cluster;
pub mod controllers;
mod events;
pub mod kapi;
pub mod kubelet;
pub mod machines;
pub mod manifests;
pub mod names;
pub mod object;
pub mod rng;

pub use apiserver::ApiServer;
pub use clock::Clock;
pub use cluster::SimCluster;
