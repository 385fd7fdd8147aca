//! The shipped agents of the drill's nodes: each runs while its machine does, over its node's network.

use crate::names::AGENT_USER;
use reattach_agent::guest::HostRoot;
use reattach_agent::report::{AgentConfig, ScanOn};
use reattach_core::ids::NodeName;
use reattach_sim::ApiServer;
use reattach_sim::kapi::lock;
use reattach_sim::kubelet::SimKubelet;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::AbortHandle;

/// How often an agent looks unasked. Rarer than the shipped default, which makes hours of virtual time cheaper; questions
/// are answered at once anyway.
const RESCAN: Duration = Duration::from_secs(30);

struct Agent {
    machine: SimKubelet,
    root: PathBuf,
    /// None while it is stopped for good.
    task: Option<AbortHandle>,
}

/// The agents by node. Clones share them.
#[derive(Clone)]
pub(crate) struct Agents {
    server: ApiServer,
    agents: Arc<Mutex<BTreeMap<String, Agent>>>,
}

impl Agents {
    pub(crate) fn new(server: ApiServer) -> Self {
        Self {
            server,
            agents: Arc::default(),
        }
    }

    fn with<T>(&self, work: impl FnOnce(&mut BTreeMap<String, Agent>) -> T) -> T {
        work(&mut lock(&self.agents))
    }

    /// Starts the agent of a machine whose files are shown at `root`.
    pub(crate) fn add(&self, machine: &SimKubelet, root: PathBuf) {
        let task = Some(self.spawn(machine, root.clone()));
        let agent = Agent {
            machine: machine.clone(),
            root,
            task,
        };
        if let Some(old) = self.with(|all| all.insert(machine.node().to_owned(), agent)) {
            abort(&old);
        }
    }

    fn spawn(&self, machine: &SimKubelet, root: PathBuf) -> AbortHandle {
        let config = AgentConfig {
            node: NodeName::new(machine.node()),
            root: HostRoot::new(root),
            rescan: RESCAN,
            scan_on: ScanOn::CallingTask,
        };
        let clock = self.server.clock();
        let client = machine.over_its_network(self.server.client_as(AGENT_USER));
        let events = futures::stream::pending();
        let stop = std::future::pending();
        let run = reattach_agent::run(client, config, move || clock.now(), events, stop);
        tokio::spawn(run).abort_handle()
    }

    /// The machine went down, and the agent with it.
    pub(crate) fn down(&self, node: &str) {
        self.with(|all| all.get(node).map(abort));
    }

    /// The machine is up again, and starts its agent unless that was stopped for good.
    pub(crate) fn up(&self, node: &str) {
        self.with(|all| {
            if let Some(agent) = all.get_mut(node).filter(|a| a.task.is_some()) {
                abort(agent);
                agent.task = Some(self.spawn(&agent.machine, agent.root.clone()));
            }
        });
    }

    /// Stops the agent of a node for good.
    pub(crate) fn stop(&self, node: &str) {
        self.with(|all| {
            if let Some(agent) = all.get_mut(node) {
                abort(agent);
                agent.task = None;
            }
        });
    }

    /// Stops all of them.
    pub(crate) fn stop_all(&self) {
        self.with(|all| all.values().for_each(abort));
    }
}

fn abort(agent: &Agent) {
    if let Some(task) = &agent.task {
        task.abort();
    }
}
