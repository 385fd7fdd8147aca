//! Parses method, path, query and body into a typed call. Refuses what Linode's API description does not allow.

use super::{reply::Reply, scope::Scope};
use crate::{
    faults::Operation,
    http::{Incoming, RequestSummary},
    model::{InstanceNo, JobAction, VolumeNo},
};
use axum::http::Method;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Debug)]
pub(super) enum Call {
    ListVolumes(Page),
    GetVolume(VolumeNo),
    Attach {
        volume: VolumeNo,
        instance: InstanceNo,
        persist: bool,
    },
    Detach(VolumeNo),
    ListInstances(Page),
    GetInstance(InstanceNo),
    ListInstanceVolumes(InstanceNo, Page),
    Power(InstanceNo, JobAction),
    SetWatchdog(InstanceNo, bool),
    ListEvents(Page),
}

/// The requested page of a list.
#[derive(Clone, Debug)]
pub(super) struct Page {
    page: usize,
    size: usize,
}

impl Page {
    fn parse(query: Option<&str>) -> Result<Self, Reply> {
        let mut found = Self { page: 1, size: 100 };
        for (name, value) in query
            .unwrap_or_default()
            .split('&')
            .filter_map(|pair| pair.split_once('='))
        {
            let number = value.parse::<usize>();
            match (name, number) {
                ("page", Ok(page)) if page >= 1 => found.page = page,
                ("page", _) => return Err(Reply::error(400, "Must be 1 or more", Some("page"))),
                ("page_size", Ok(size)) if (25..=500).contains(&size) => found.size = size,
                ("page_size", _) => {
                    return Err(Reply::error(400, "Must be 25-500", Some("page_size")));
                }
                _ => {}
            }
        }
        Ok(found)
    }

    pub(super) fn of(&self, rows: Vec<Value>) -> Reply {
        let results = rows.len();
        let pages = results.div_ceil(self.size).max(1);
        if self.page > pages {
            return Reply::not_found();
        }
        let data: Vec<_> = rows
            .into_iter()
            .skip((self.page - 1) * self.size)
            .take(self.size)
            .collect();
        Reply::ok(json!({ "data": data, "page": self.page, "pages": pages, "results": results }))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AttachBody {
    linode_id: InstanceNo,
    #[serde(default, rename = "config_id")]
    _config_id: Option<u64>,
    #[serde(default)]
    persist_across_boots: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PowerBody {
    #[serde(default, rename = "config_id")]
    _config_id: Option<u64>,
}

/// The only field of an instance that a client may change here.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateBody {
    watchdog_enabled: bool,
}

impl Call {
    pub(super) fn parse(
        method: &Method,
        path: &str,
        query: Option<&str>,
        incoming: &Incoming,
    ) -> Result<Self, Reply> {
        let parts: Vec<_> = path.split('/').skip(1).collect();
        let (Some(&version), rest) = (parts.first(), parts.get(1..).unwrap_or_default()) else {
            return Err(Reply::not_found());
        };
        if version != "v4" && version != "v4beta" {
            return Err(Reply::not_found());
        }
        let get = method == Method::GET;
        let post = method == Method::POST;
        let call = match rest {
            ["volumes"] if get => Self::ListVolumes(Page::parse(query)?),
            ["volumes", id] if get => Self::GetVolume(number(id)?),
            ["volumes", id, "attach"] if post => Self::attach(number(id)?, incoming)?,
            ["volumes", id, "detach"] if post => Self::Detach(number(id)?),
            ["linode", "instances"] if get => Self::ListInstances(Page::parse(query)?),
            ["linode", "instances", id] if get => Self::GetInstance(number(id)?),
            ["linode", "instances", id, "volumes"] if get => {
                Self::ListInstanceVolumes(number(id)?, Page::parse(query)?)
            }
            [
                "linode",
                "instances",
                id,
                verb @ ("boot" | "reboot" | "shutdown"),
            ] if post => {
                if !incoming.body.is_empty() {
                    body::<PowerBody>(incoming)?;
                }
                let action = match *verb {
                    "boot" => JobAction::Boot,
                    "reboot" => JobAction::Reboot,
                    _ => JobAction::Shutdown,
                };
                Self::Power(number(id)?, action)
            }
            ["linode", "instances", id] if method == Method::PUT => {
                Self::SetWatchdog(number(id)?, body::<UpdateBody>(incoming)?.watchdog_enabled)
            }
            ["account", "events"] if get => Self::ListEvents(Page::parse(query)?),
            _ => return Err(Reply::not_found()),
        };
        Ok(call)
    }

    fn attach(volume: VolumeNo, incoming: &Incoming) -> Result<Self, Reply> {
        let body = body::<AttachBody>(incoming)?;
        // Linode's default is to persist; its CSI driver sets it to false.
        let persist = body.persist_across_boots.unwrap_or(true);
        Ok(Self::Attach {
            volume,
            instance: body.linode_id,
            persist,
        })
    }

    pub(super) fn summary(&self) -> RequestSummary {
        let (volume, instance) = (self.volume(), self.instance());
        RequestSummary {
            operation: Some(self.operation()),
            volume,
            instance,
            dry_run: false,
        }
    }

    pub(super) fn operation(&self) -> Operation {
        match self {
            Self::ListVolumes(_) => Operation::ListVolumes,
            Self::GetVolume(_) => Operation::DescribeVolume,
            Self::Attach { .. } => Operation::AttachVolume,
            Self::Detach(_) => Operation::DetachVolume,
            Self::ListInstances(_) => Operation::ListInstances,
            Self::GetInstance(_) => Operation::DescribeInstance,
            Self::ListInstanceVolumes(..) => Operation::ListInstanceVolumes,
            Self::Power(_, JobAction::Boot) => Operation::BootInstance,
            Self::Power(_, JobAction::Reboot) => Operation::RebootInstance,
            Self::Power(..) => Operation::ShutdownInstance,
            Self::SetWatchdog(..) => Operation::UpdateInstance,
            Self::ListEvents(_) => Operation::ListJobs,
        }
    }

    fn volume(&self) -> Option<VolumeNo> {
        match self {
            Self::GetVolume(volume) | Self::Attach { volume, .. } | Self::Detach(volume) => {
                Some(*volume)
            }
            _ => None,
        }
    }

    fn instance(&self) -> Option<InstanceNo> {
        match self {
            Self::GetInstance(instance)
            | Self::ListInstanceVolumes(instance, _)
            | Self::Power(instance, _)
            | Self::SetWatchdog(instance, _)
            | Self::Attach { instance, .. } => Some(*instance),
            _ => None,
        }
    }

    /// Returns the scopes that the API description requires.
    pub(super) fn scopes(&self) -> Vec<Scope> {
        match self {
            Self::ListVolumes(_) | Self::GetVolume(_) => vec![Scope::read("volumes")],
            Self::Attach { .. } | Self::Detach(_) => {
                vec![Scope::write("volumes"), Scope::write("linodes")]
            }
            Self::ListInstances(_) | Self::GetInstance(_) | Self::ListInstanceVolumes(..) => {
                vec![Scope::read("linodes")]
            }
            Self::Power(..) | Self::SetWatchdog(..) => vec![Scope::write("linodes")],
            Self::ListEvents(_) => vec![Scope::read("events")],
        }
    }
}

fn number<T: From<u64>>(text: &str) -> Result<T, Reply> {
    text.parse::<u64>()
        .map(T::from)
        .map_err(|_| Reply::not_found())
}

fn body<'a, T: Deserialize<'a>>(incoming: &'a Incoming) -> Result<T, Reply> {
    serde_json::from_slice(&incoming.body)
        .map_err(|error| Reply::error(400, &error.to_string(), None))
}
