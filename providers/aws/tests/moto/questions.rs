//! The requests to both simulators, and their answers.

use crate::world::World;
use aws_sdk_ec2::{
    error::{ProvideErrorMetadata, SdkError},
    types::Filter,
};
use futures::future::{BoxFuture, FutureExt};
use reattach_core::ids::{InstanceId, VolumeId};
use reattach_provider_api::{
    DetachOutcome, Grant, Lookup, PowerOffManner, PowerOffRequest, Provider, SnapshotRequest,
};
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(20);
const NO_VOLUME: &str = "vol-0fffffffffffffff0";
const NO_INSTANCE: &str = "i-0fffffffffffffff0";

/// The simulator whose answer is EC2's.
#[derive(Clone, Copy)]
pub enum Right {
    /// This project's simulator.
    Ours,
    /// The simulator moto.
    #[allow(dead_code, reason = "none at present")]
    Theirs,
    /// Neither of them.
    #[allow(dead_code, reason = "none at present")]
    Neither,
}

/// The expected answers.
#[derive(Clone, Copy)]
pub enum Expected {
    /// Both simulators give this answer.
    Same(&'static str),
    /// The simulators give different answers.
    Differ {
        ours: &'static str,
        theirs: &'static str,
        right: Right,
        why: &'static str,
    },
}

/// One request or sequence of requests.
pub struct Question {
    /// Name of the question.
    pub name: &'static str,
    /// Sends the requests in a new setup.
    pub ask: for<'a> fn(&'a World) -> BoxFuture<'a, String>,
    /// Expected answers.
    pub expected: Expected,
}

/// Returns the code of a refusal, or that it has none.
fn code<T, E: ProvideErrorMetadata>(
    answer: Result<T, SdkError<E, aws_sdk_ec2::config::http::HttpResponse>>,
) -> String {
    match answer {
        Ok(_) => "success".to_owned(),
        Err(error) => match (
            error.as_service_error().and_then(|e| e.code()),
            error.raw_response(),
        ) {
            (Some(code), Some(raw)) => format!("{code} {}", raw.status().as_u16()),
            (None, Some(raw)) => format!("no code {}", raw.status().as_u16()),
            _ => "no answer".to_owned(),
        },
    }
}

async fn volume(w: &World) -> String {
    match w
        .provider
        .describe_volumes(std::slice::from_ref(&w.volume))
        .await
        .remove(&w.volume)
    {
        Some(Lookup::Found(v)) => {
            let holders: Vec<_> = v.holders.iter().map(|h| w.named(h.as_str())).collect();
            format!(
                "{} GiB, {}, held by [{}]",
                v.size_gib,
                v.state,
                holders.join(" ")
            )
        }
        other => format!("{other:?}"),
    }
}

async fn instance(w: &World) -> String {
    match w
        .provider
        .describe_instances(std::slice::from_ref(&w.holder))
        .await
        .remove(&w.holder)
    {
        Some(Lookup::Found(i)) => format!("{:?}", i.state),
        other => format!("{other:?}"),
    }
}

async fn detach(w: &World) -> String {
    let proof = reattach_provider_api::conformance::proof::handshake(
        &w.volume,
        &w.holder,
        crate::support::start(),
    );
    let order = reattach_provider_api::DetachRequest::plain(proof, TIMEOUT);
    match w.provider.detach(order).await {
        Ok(DetachOutcome::AttachedElsewhere(other)) => {
            format!("AttachedElsewhere({})", w.named(other.as_str()))
        }
        Ok(outcome) => format!("{outcome:?}"),
        Err(error) => w.named(&error.to_string()),
    }
}

async fn jobs(w: &World) -> String {
    let jobs = w
        .provider
        .jobs(&w.volume, w.long_ago())
        .await
        .expect("jobs");
    let seen: Vec<_> = jobs
        .iter()
        .map(|j| format!("{} {:?}", j.action, j.status))
        .collect();
    format!("[{}]", seen.join(", "))
}

async fn power_off(w: &World) -> String {
    let order = PowerOffRequest {
        instance: w.holder.clone(),
        manner: PowerOffManner::Forced,
        timeout: TIMEOUT,
    };
    format!("{:?}", w.provider.power_off(order).await)
}

fn label() -> SnapshotRequest {
    SnapshotRequest {
        volume: NO_VOLUME.into(),
        label: "reattach 7d1c".to_owned(),
        timeout: TIMEOUT,
    }
}

async fn raw_detach(w: &World, volume: &str, instance: Option<&str>) -> String {
    let request = w
        .ec2
        .detach_volume()
        .volume_id(volume)
        .set_instance_id(instance.map(str::to_owned));
    code(request.send().await)
}

/// All questions. "Documentation" means the EC2 API Reference.
pub const QUESTIONS: &[Question] = &[
    Question {
        name: "a volume",
        ask: |w| async move { volume(w).await }.boxed(),
        expected: Expected::Same("10 GiB, Active, held by [HOLDER]"),
    },
    Question {
        name: "an unknown volume",
        ask: |w| {
            async move {
                let id = VolumeId::from(NO_VOLUME);
                format!(
                    "{:?}",
                    w.provider
                        .describe_volumes(std::slice::from_ref(&id))
                        .await
                        .remove(&id)
                )
            }
            .boxed()
        },
        expected: Expected::Same("Some(NotFound)"),
    },
    Question {
        name: "an instance",
        ask: |w| async move { instance(w).await }.boxed(),
        expected: Expected::Same("Running"),
    },
    Question {
        name: "an unknown instance",
        ask: |w| {
            async move {
                let id = InstanceId::from(NO_INSTANCE);
                format!(
                    "{:?}",
                    w.provider
                        .describe_instances(std::slice::from_ref(&id))
                        .await
                        .remove(&id)
                )
            }
            .boxed()
        },
        expected: Expected::Same("Some(NotFound)"),
    },
    Question {
        name: "rights by dry-run",
        ask: |w| {
            async move {
                let report = w.provider.preflight().await;
                let (present, others): (Vec<_>, Vec<_>) = report
                    .rights
                    .into_iter()
                    .partition(|r| r.grant == Grant::Present);
                let others: Vec<_> = others.into_iter().map(|r| (r.name, r.grant)).collect();
                format!(
                    "{} present, others: {others:?}, then {}",
                    present.len(),
                    volume(w).await
                )
            }
            .boxed()
        },
        expected: Expected::Same("7 present, others: [], then 10 GiB, Active, held by [HOLDER]"),
    },
    Question {
        name: "a credential that is not known",
        ask: |w| {
            async move {
                w.forget_credentials().await;
                detach(w).await
            }
            .boxed()
        },
        expected: Expected::Same(
            "not allowed to detach volume VOLUME from instance HOLDER: AWS does not accept the credential: \
             AuthFailure (HTTP 401)",
        ),
    },
    Question {
        name: "a detach, and its end",
        ask: |w| {
            async move {
                let outcome = detach(w).await;
                w.settle();
                format!("{outcome}, then {}", volume(w).await)
            }
            .boxed()
        },
        expected: Expected::Same("Accepted, then 10 GiB, Active, held by []"),
    },
    Question {
        name: "the volume right after a detach",
        ask: |w| {
            async move {
                detach(w).await;
                volume(w).await
            }
            .boxed()
        },
        expected: Expected::Differ {
            ours: "10 GiB, Detaching, held by [HOLDER]",
            theirs: "10 GiB, Active, held by []",
            right: Right::Ours,
            why: "DetachVolume answers with the status `detaching`, and VolumeAttachment lists it as a state that \
                  DescribeVolumes shows; moto has no time between the two",
        },
    },
    Question {
        name: "the jobs right after a detach",
        ask: |w| {
            async move {
                detach(w).await;
                jobs(w).await
            }
            .boxed()
        },
        expected: Expected::Differ {
            ours: "[detach_volume Started]",
            theirs: "[]",
            right: Right::Ours,
            why: "as above: the attachment is `detaching` until the guest let go",
        },
    },
    Question {
        name: "a detach after a detach",
        ask: |w| {
            async move {
                detach(w).await;
                w.settle();
                detach(w).await
            }
            .boxed()
        },
        expected: Expected::Same("AlreadyDetached"),
    },
    Question {
        name: "DetachVolume of a volume that nobody has",
        ask: |w| {
            async move {
                detach(w).await;
                w.settle();
                raw_detach(w, w.volume.as_str(), Some(w.holder.as_str())).await
            }
            .boxed()
        },
        expected: Expected::Differ {
            ours: "IncorrectState 400",
            theirs: "InvalidAttachment.NotFound 400",
            right: Right::Ours,
            why: "the list of error codes gives IncorrectState for a volume that is not in the required state; the \
                  provider reads again after either and finds the same",
        },
    },
    Question {
        name: "DetachVolume from another instance that has a volume under the same device name",
        ask: |w| {
            async move {
                let answer = raw_detach(w, w.volume.as_str(), Some(w.other.as_str())).await;
                w.settle();
                format!("{answer}, then {}", volume(w).await)
            }
            .boxed()
        },
        expected: Expected::Differ {
            ours: "InvalidAttachment.NotFound 400, then 10 GiB, Active, held by [HOLDER]",
            theirs: "success, then 10 GiB, Active, held by []",
            right: Right::Ours,
            why: "InvalidAttachment.NotFound: the instance cannot be detached from a volume to which it is not \
                  attached; moto compares the device name only. What protects a second holder is not to be tested \
                  against moto",
        },
    },
    Question {
        name: "DetachVolume without an instance",
        ask: |w| async move { raw_detach(w, w.volume.as_str(), None).await }.boxed(),
        expected: Expected::Differ {
            ours: "success",
            theirs: "no code 500",
            right: Right::Ours,
            why: "InstanceId is required for Multi-Attach volumes only; the provider always sends it",
        },
    },
    Question {
        name: "DetachVolume of an unknown volume",
        ask: |w| async move { raw_detach(w, NO_VOLUME, Some(w.holder.as_str())).await }.boxed(),
        expected: Expected::Same("InvalidVolume.NotFound 400"),
    },
    Question {
        name: "DetachVolume from an unknown instance",
        ask: |w| async move { raw_detach(w, w.volume.as_str(), Some(NO_INSTANCE)).await }.boxed(),
        expected: Expected::Same("InvalidInstanceID.NotFound 400"),
    },
    Question {
        name: "DetachVolume of what is no volume identifier",
        ask: |w| async move { raw_detach(w, "vol-xyz", Some(w.holder.as_str())).await }.boxed(),
        expected: Expected::Differ {
            ours: "InvalidParameterValue 400",
            theirs: "InvalidVolume.NotFound 400",
            right: Right::Ours,
            why: "InvalidParameterValue: a value is not valid or not of the expected form; the provider sends no \
                  such identifier",
        },
    },
    Question {
        name: "AttachVolume of a volume that another instance has",
        ask: |w| {
            async move {
                let attach = w
                    .ec2
                    .attach_volume()
                    .volume_id(w.volume.as_str())
                    .instance_id(w.other.as_str());
                let answer = code(attach.device("/dev/sdg").send().await);
                w.settle();
                format!("{answer}, then {}", volume(w).await)
            }
            .boxed()
        },
        expected: Expected::Differ {
            ours: "VolumeInUse 400, then 10 GiB, Active, held by [HOLDER]",
            theirs: "success, then 10 GiB, Active, held by [OTHER]",
            right: Right::Ours,
            why: "VolumeInUse: the volume is attached to another instance; moto moves it without a word",
        },
    },
    Question {
        name: "a filter that does not exist",
        ask: |w| {
            async move {
                let filter = Filter::builder().name("nonsense").values("x").build();
                code(w.ec2.describe_volumes().filters(filter).send().await)
            }
            .boxed()
        },
        expected: Expected::Differ {
            ours: "InvalidParameterValue 400",
            theirs: "no code 500",
            right: Right::Ours,
            why: "a mistake of the caller's is a client error (4xx) with a code by the list of error codes",
        },
    },
    Question {
        name: "powering off, and its end",
        ask: |w| {
            async move {
                let outcome = power_off(w).await;
                w.settle();
                format!(
                    "{outcome}, {}, {}, {}",
                    instance(w).await,
                    power_off(w).await,
                    volume(w).await
                )
            }
            .boxed()
        },
        expected: Expected::Same(
            "Ok(Accepted), Off, Ok(AlreadyThere), 10 GiB, Active, held by [HOLDER]",
        ),
    },
    Question {
        name: "the instance right after powering off",
        ask: |w| {
            async move {
                power_off(w).await;
                instance(w).await
            }
            .boxed()
        },
        expected: Expected::Differ {
            ours: "Stopping",
            theirs: "Off",
            right: Right::Ours,
            why: "StopInstances answers `stopping`, and it can take a few minutes to stop; moto has no time between",
        },
    },
    Question {
        name: "powering on again",
        ask: |w| {
            async move {
                power_off(w).await;
                w.settle();
                let outcome = w.provider.power_on(&w.holder, TIMEOUT).await;
                w.settle();
                format!("{outcome:?}, {}, {}", instance(w).await, volume(w).await)
            }
            .boxed()
        },
        expected: Expected::Same("Ok(Accepted), Running, 10 GiB, Active, held by [HOLDER]"),
    },
    Question {
        name: "a snapshot, found by its label when done",
        ask: |w| {
            async move {
                let order = SnapshotRequest {
                    volume: w.volume.clone(),
                    ..label()
                };
                let begun = w.provider.snapshot(order).await.expect("begun");
                w.settle();
                let found = w
                    .provider
                    .snapshots(&w.volume, &label().label)
                    .await
                    .expect("read");
                let other = w
                    .provider
                    .snapshots(&w.volume, "another")
                    .await
                    .expect("read");
                let same = found.iter().map(|s| s.id == begun.id).collect::<Vec<_>>();
                format!(
                    "{same:?} {:?}, another label: {}",
                    found[0].state,
                    other.len()
                )
            }
            .boxed()
        },
        expected: Expected::Same("[true] Completed, another label: 0"),
    },
    Question {
        name: "a snapshot right after its order",
        ask: |w| {
            async move {
                let order = SnapshotRequest {
                    volume: w.volume.clone(),
                    ..label()
                };
                w.provider.snapshot(order).await.expect("begun");
                let found = w
                    .provider
                    .snapshots(&w.volume, &label().label)
                    .await
                    .expect("read");
                format!("{:?}", found[0].state)
            }
            .boxed()
        },
        expected: Expected::Differ {
            ours: "Pending",
            theirs: "Completed",
            right: Right::Ours,
            why: "CreateSnapshot returns at once, and the snapshot is `pending` until its data is in S3",
        },
    },
    Question {
        name: "a snapshot of an unknown volume",
        ask: |w| {
            async move {
                let error = w
                    .provider
                    .snapshot(label())
                    .await
                    .expect_err("no such volume");
                format!(
                    "{:?} {}",
                    error.effect(),
                    error.to_string().contains("InvalidVolume.NotFound")
                )
            }
            .boxed()
        },
        expected: Expected::Same("NotApplied true"),
    },
];
