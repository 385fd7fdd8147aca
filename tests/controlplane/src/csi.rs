//! The side door of the CSI controller: its fault switches and its call log.

use std::{collections::BTreeMap, path::Path};

use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::HarnessError;

/// Faults of the CSI controller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CsiFaults {
    /// How ControllerUnpublishVolume behaves.
    pub unpublish: Unpublish,
    /// Behaviour of single volumes, by their number, where it differs.
    #[serde(default)]
    pub volumes: BTreeMap<u64, Unpublish>,
}

impl From<Unpublish> for CsiFaults {
    /// Behaviour of all volumes.
    fn from(unpublish: Unpublish) -> Self {
        Self {
            unpublish,
            volumes: BTreeMap::new(),
        }
    }
}

/// How ControllerUnpublishVolume behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unpublish {
    /// As Linode's driver does.
    #[default]
    Ok,
    /// Internal, `detach volume N: …`, as long as the cloud's API says that the volume is attached to that instance, and
    /// without asking the cloud to detach; success once it is not.
    Fail,
    /// No answer until the caller gives up or the switch is moved; then as [`Unpublish::Ok`].
    Hang,
}

/// One CSI call that reached the CSI controller since it was last started.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct CsiCall {
    /// The gRPC method, e.g. `/csi.v1.Controller/ControllerUnpublishVolume`.
    pub method: String,
    /// The volume handle, where the call has one.
    #[serde(default)]
    pub volume: String,
    /// The CSI node id (Linode's instance number), where the call has one.
    #[serde(default)]
    pub node: String,
    /// When it came.
    pub started: Timestamp,
    /// When it was answered; none while it runs.
    pub finished: Option<Timestamp>,
    /// The gRPC code's name, e.g. `OK`; empty while it runs.
    #[serde(default)]
    pub code: String,
    /// The error's text, empty on success.
    #[serde(default)]
    pub message: String,
}

impl CsiCall {
    /// Whether it is a call of this name, e.g. `ControllerPublishVolume`.
    pub fn is(&self, name: &str) -> bool {
        self.method.rsplit('/').next() == Some(name)
    }
}

/// A client of the control endpoint.
pub(crate) struct Control {
    base: String,
    http: reqwest::Client,
}

impl Control {
    /// The address stands in a file that the CSI controller writes once it serves; none before that.
    pub fn find(address_file: &Path, http: reqwest::Client) -> Option<Self> {
        let address = std::fs::read_to_string(address_file).ok()?;
        Some(Self {
            base: format!("http://{}", address.trim()),
            http,
        })
    }

    pub async fn healthy(&self) -> Result<(), HarnessError> {
        checked(self.http.get(format!("{}/healthz", self.base)))
            .await
            .map(|_| ())
    }

    pub async fn set_faults(&self, faults: &CsiFaults) -> Result<(), HarnessError> {
        let answer: CsiFaults =
            json(self.http.put(format!("{}/faults", self.base)).json(faults)).await?;
        if answer == *faults {
            return Ok(());
        }
        Err(HarnessError::Control {
            reason: format!("{faults:?} was asked for, it has {answer:?}"),
        })
    }

    pub async fn calls(&self) -> Result<Vec<CsiCall>, HarnessError> {
        json(self.http.get(format!("{}/calls", self.base))).await
    }
}

fn control(error: reqwest::Error) -> HarnessError {
    HarnessError::Control {
        reason: error.to_string(),
    }
}

async fn checked(request: reqwest::RequestBuilder) -> Result<reqwest::Response, HarnessError> {
    let answer = request.send().await.map_err(control)?;
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let text = answer.text().await.unwrap_or_default();
    Err(HarnessError::Control {
        reason: format!("{status}: {}", text.trim()),
    })
}

async fn json<T: DeserializeOwned>(request: reqwest::RequestBuilder) -> Result<T, HarnessError> {
    checked(request).await?.json().await.map_err(control)
}
