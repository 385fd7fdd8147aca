//! Names that the whole drill uses.

/// The user that every agent is, as `deploy/` sets it up.
pub const AGENT_USER: &str = "system:serviceaccount:reattach-system:reattach-agent";
/// The user of the requests that a person sends.
pub const PERSON: &str = "sre@example.org";
/// The namespace of the drill's workloads.
pub const APPS: &str = "default";
/// The token that the simulated cloud accepts; to EC2 the identifier of the access key.
pub const TOKEN: &str = "drill-token-5e77e15";
