//! Parses a form-encoded request into a typed call. Refuses parameters that the action does not have.

use super::{id, reply::Refusal};
use crate::{
    faults::Operation,
    http::RequestSummary,
    model::{InstanceNo, SnapshotNo, VolumeNo},
};
use std::collections::BTreeMap;

/// The API's one version.
const VERSION: &str = "2016-11-15";

/// Maximum number of values of one filter.
const FILTER_VALUES: usize = 200;

/// A typed call.
#[derive(Clone, Debug)]
pub(super) enum Call {
    DescribeVolumes {
        ids: Vec<VolumeNo>,
        filters: Filters,
        page: Page,
    },
    DescribeInstances {
        ids: Vec<InstanceNo>,
        filters: Filters,
        page: Page,
    },
    DescribeSnapshots {
        ids: Vec<SnapshotNo>,
        filters: Filters,
        page: Page,
    },
    AttachVolume {
        volume: VolumeNo,
        instance: InstanceNo,
    },
    DetachVolume {
        volume: VolumeNo,
        instance: Option<InstanceNo>,
        force: bool,
    },
    StopInstances {
        instances: Vec<InstanceNo>,
    },
    StartInstances {
        instances: Vec<InstanceNo>,
    },
    CreateSnapshot {
        volume: VolumeNo,
        description: String,
    },
}

/// A call, and whether it is a dry-run.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) call: Call,
    pub(super) dry_run: bool,
}

/// Filters by name. A row passes when it has one of the values of each filter.
pub(super) type Filters = BTreeMap<String, Vec<String>>;

/// The requested page of a list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page {
    pub(super) start: usize,
    pub(super) size: usize,
}

struct Params(BTreeMap<String, String>);

impl Params {
    fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    fn need(&mut self, name: &str) -> Result<String, Refusal> {
        self.take(name).ok_or_else(|| {
            Refusal::new(
                400,
                "MissingParameter",
                format!("The request must contain the parameter {name}"),
            )
        })
    }

    /// Takes `Name.1`, `Name.2`, … in order.
    fn list(&mut self, name: &str) -> Vec<String> {
        (1..)
            .map_while(|n| self.take(&format!("{name}.{n}")))
            .collect()
    }

    fn flag(&mut self, name: &str) -> Result<bool, Refusal> {
        match self.take(name).as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => {
                let why = format!("Invalid value '{other}' for {name}. It must be true or false.");
                Err(Refusal::new(400, "InvalidParameterValue", why))
            }
        }
    }

    fn filters(&mut self, known: &[&str]) -> Result<Filters, Refusal> {
        let mut found = Filters::new();
        for n in 1.. {
            let Some(name) = self.take(&format!("Filter.{n}.Name")) else {
                break;
            };
            let values = self.list(&format!("Filter.{n}.Value"));
            if !known.contains(&name.as_str()) && !name.starts_with("tag:") {
                let why = format!("The filter '{name}' is invalid");
                return Err(Refusal::new(400, "InvalidParameterValue", why));
            }
            if values.len() > FILTER_VALUES {
                let why = "The maximum number of filter values specified on a single call is 200";
                return Err(Refusal::new(400, "FilterLimitExceeded", why));
            }
            found.insert(name, values);
        }
        Ok(found)
    }

    fn page(&mut self, has_ids: bool) -> Result<Page, Refusal> {
        let bad = |code, why: &str| Err(Refusal::new(400, code, why));
        let size = match self.take("MaxResults") {
            None => usize::MAX,
            Some(_) if has_ids => {
                let why = "The parameter MaxResults cannot be used with a list of identifiers";
                return bad("InvalidParameterCombination", why);
            }
            Some(text) => match text.parse() {
                Ok(size) if (5..=1000).contains(&size) => size,
                _ => {
                    return bad(
                        "InvalidParameterValue",
                        "Value for parameter maxResults must be between 5 and 1000",
                    );
                }
            },
        };
        let start = match self.take("NextToken").map(|token| token.parse()) {
            None => 0,
            Some(Ok(start)) => start,
            Some(Err(_)) => {
                return bad("InvalidParameterValue", "Unable to parse pagination token");
            }
        };
        Ok(Page { start, size })
    }
}

fn all<T>(texts: &[String], parse: impl Fn(&str) -> Result<T, Refusal>) -> Result<Vec<T>, Refusal> {
    texts.iter().map(|text| parse(text)).collect()
}

impl Request {
    pub(super) fn parse(body: &[u8]) -> Result<Self, Refusal> {
        let mut params = Params(form_urlencoded::parse(body).into_owned().collect());
        let action = params.take("Action").unwrap_or_default();
        if params.take("Version").as_deref() != Some(VERSION) {
            let why = format!("The action {action} is not valid for this web service.");
            return Err(Refusal::new(400, "InvalidAction", why));
        }
        let dry_run = params.flag("DryRun")?;
        let call = Call::parse(&action, &mut params)?;
        match params.0.keys().next() {
            None => Ok(Self { call, dry_run }),
            Some(name) => {
                let why = format!("The parameter {name} is not recognized");
                Err(Refusal::new(400, "UnknownParameter", why))
            }
        }
    }

    /// Returns the operation and its object. A call about several objects names none.
    pub(super) fn summary(&self) -> RequestSummary {
        let only = |ids: &[InstanceNo]| if let [one] = ids { Some(*one) } else { None };
        let (operation, volume, instance) = match &self.call {
            Call::DescribeVolumes { ids, filters, .. } => {
                let by_filter = filters
                    .get("volume-id")
                    .map(|ids| all(ids, id::parse_volume).unwrap_or_default());
                let volume = match by_filter.as_deref().unwrap_or(ids) {
                    [one] => Some(*one),
                    _ => None,
                };
                (Operation::ListVolumes, volume, None)
            }
            Call::DescribeInstances { ids, filters, .. } => {
                let by_filter = filters
                    .get("instance-id")
                    .map(|ids| all(ids, id::parse_instance).unwrap_or_default());
                (
                    Operation::ListInstances,
                    None,
                    only(by_filter.as_deref().unwrap_or(ids)),
                )
            }
            Call::DescribeSnapshots { .. } => (Operation::ListSnapshots, None, None),
            Call::AttachVolume { volume, instance } => {
                (Operation::AttachVolume, Some(*volume), Some(*instance))
            }
            Call::DetachVolume {
                volume, instance, ..
            } => (Operation::DetachVolume, Some(*volume), *instance),
            Call::StopInstances { instances } => {
                (Operation::ShutdownInstance, None, only(instances))
            }
            Call::StartInstances { instances } => (Operation::BootInstance, None, only(instances)),
            Call::CreateSnapshot { volume, .. } => (Operation::CreateSnapshot, Some(*volume), None),
        };
        RequestSummary {
            operation: Some(operation),
            volume,
            instance,
            dry_run: self.dry_run,
        }
    }
}

impl Call {
    fn parse(action: &str, params: &mut Params) -> Result<Self, Refusal> {
        let call = match action {
            "DescribeVolumes" => {
                params.flag("IncludeManagedResources")?;
                let ids = all(&params.list("VolumeId"), id::parse_volume)?;
                let filters = params.filters(&[
                    "volume-id",
                    "attachment.instance-id",
                    "attachment.status",
                    "status",
                    "tag-key",
                    "availability-zone",
                ])?;
                Self::DescribeVolumes {
                    page: params.page(!ids.is_empty())?,
                    ids,
                    filters,
                }
            }
            "DescribeInstances" => {
                params.flag("IncludeManagedResources")?;
                let ids = all(&params.list("InstanceId"), id::parse_instance)?;
                let filters =
                    params.filters(&["instance-id", "instance-state-name", "availability-zone"])?;
                Self::DescribeInstances {
                    page: params.page(!ids.is_empty())?,
                    ids,
                    filters,
                }
            }
            "DescribeSnapshots" => {
                let owners = params.list("Owner");
                if owners.iter().any(|owner| owner != "self") {
                    let why =
                        "Value for parameter owner is invalid. This simulator knows self only.";
                    return Err(Refusal::new(400, "InvalidParameterValue", why));
                }
                let ids = all(&params.list("SnapshotId"), id::parse_snapshot)?;
                let filters =
                    params.filters(&["snapshot-id", "volume-id", "description", "status"])?;
                Self::DescribeSnapshots {
                    page: params.page(!ids.is_empty())?,
                    ids,
                    filters,
                }
            }
            "AttachVolume" => {
                params.need("Device")?;
                let volume = id::parse_volume(&params.need("VolumeId")?)?;
                Self::AttachVolume {
                    volume,
                    instance: id::parse_instance(&params.need("InstanceId")?)?,
                }
            }
            "DetachVolume" => {
                params.take("Device");
                let volume = id::parse_volume(&params.need("VolumeId")?)?;
                let instance = params
                    .take("InstanceId")
                    .map(|id| id::parse_instance(&id))
                    .transpose()?;
                Self::DetachVolume {
                    volume,
                    instance,
                    force: params.flag("Force")?,
                }
            }
            "StopInstances" => {
                params.flag("Force")?;
                Self::StopInstances {
                    instances: Self::some_instances(params)?,
                }
            }
            "StartInstances" => Self::StartInstances {
                instances: Self::some_instances(params)?,
            },
            "CreateSnapshot" => {
                let volume = id::parse_volume(&params.need("VolumeId")?)?;
                Self::CreateSnapshot {
                    volume,
                    description: params.take("Description").unwrap_or_default(),
                }
            }
            _ => {
                let why = format!("The action {action} is not valid for this web service.");
                return Err(Refusal::new(400, "InvalidAction", why));
            }
        };
        Ok(call)
    }

    fn some_instances(params: &mut Params) -> Result<Vec<InstanceNo>, Refusal> {
        let ids = all(&params.list("InstanceId"), id::parse_instance)?;
        if ids.is_empty() {
            params.need("InstanceId").map(|_| ids)
        } else {
            Ok(ids)
        }
    }

    /// Returns the API's name of the action, which is also the name of the right that it needs.
    pub(super) fn action(&self) -> &'static str {
        match self {
            Self::DescribeVolumes { .. } => "DescribeVolumes",
            Self::DescribeInstances { .. } => "DescribeInstances",
            Self::DescribeSnapshots { .. } => "DescribeSnapshots",
            Self::AttachVolume { .. } => "AttachVolume",
            Self::DetachVolume { .. } => "DetachVolume",
            Self::StopInstances { .. } => "StopInstances",
            Self::StartInstances { .. } => "StartInstances",
            Self::CreateSnapshot { .. } => "CreateSnapshot",
        }
    }
}
