//! `scale`, `eviction`, `binding`, and the reviews that are answered without being stored.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::patch;
use super::request::{ApiRequest, Verb};
use super::resource::ScalePaths;
use super::rules::gates;
use super::selector::{label_selector_matches, selector_string};
use super::state::State;
use super::status::{self, ApiStatus};
use super::write::DeleteOptions;
use crate::clock::rfc3339;
use crate::object::{has_ended, int_or_percent, is_ready, name, namespace, terminating, text, uid};

/// Writes `value` at a JSON pointer, making objects on the way.
fn set_pointer(object: &mut Value, pointer: &str, value: Value) {
    let mut at = object;
    for key in pointer.split('/').skip(1) {
        if !at.is_object() {
            *at = json!({});
        }
        at = &mut at[key];
    }
    *at = value;
}

fn scale_of(paths: &ScalePaths, object: &Value) -> Value {
    let number = |p: &str| object.pointer(p).and_then(Value::as_i64).unwrap_or(0);
    let meta = &object["metadata"];
    let mut scale = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {"name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"],
            "resourceVersion": meta["resourceVersion"], "creationTimestamp": meta["creationTimestamp"]},
        "spec": {"replicas": number(&paths.spec)},
        "status": {"replicas": number(&paths.status)},
    });
    if let Some(selector) = paths.selector.as_deref().and_then(|p| object.pointer(p)) {
        scale["status"]["selector"] = json!(selector_string(selector));
    }
    scale
}

impl State {
    /// GET, PUT or PATCH of `scale`. Metadata that is sent along is dropped; its resourceVersion and UID count.
    pub fn scale(
        &mut self,
        req: &ApiRequest,
        body: &Value,
        now: Timestamp,
    ) -> Result<Value, ApiStatus> {
        let paths = req.rt.scale.clone().ok_or_else(ApiStatus::no_such_path)?;
        let old = self.existing(req)?;
        let mut scale = scale_of(&paths, &old);
        match req.verb {
            Verb::Get => return Ok(scale),
            Verb::Update => scale = body.clone(),
            Verb::Patch => patch::apply(patch::kind_of(req)?, &mut scale, body)?,
            _ => return Err(ApiStatus::method_not_allowed()),
        }
        let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
        if replicas < 0 {
            return Err(ApiStatus::invalid(
                &req.rt,
                req.name(),
                "spec.replicas: must be greater than or equal to 0",
            ));
        }
        let mut next = (*old).clone();
        for field in ["resourceVersion", "uid"] {
            next["metadata"][field] = scale["metadata"][field].clone();
        }
        set_pointer(&mut next, &paths.spec, json!(replicas));
        let mut main = req.clone();
        main.subresource = None;
        // The UID of a scale is a precondition, however it is sent.
        main.verb = Verb::Update;
        let stored = self.replace(&main, old, next, now)?;
        Ok(scale_of(&paths, &stored))
    }

    /// POST to a pod's `eviction`: deletes it unless a disruption budget objects.
    pub fn evict(
        &mut self,
        req: &ApiRequest,
        body: &Value,
        now: Timestamp,
    ) -> Result<Value, ApiStatus> {
        if body["metadata"]["name"] != *req.name() {
            return Err(ApiStatus::bad_request(
                "name in URL does not match name in Eviction object",
            ));
        }
        let pod = self.existing(req)?;
        let pending = text(&pod, "/status/phase") == "Pending";
        if !(pending || has_ended(&pod) || terminating(&pod)) {
            self.check_budgets(&pod)?;
        }
        let mut options = DeleteOptions::parse(&body["deleteOptions"], req);
        if !options.dry_run {
            check_evicted(&pod, &options)?;
            let mut marked = (*pod).clone();
            add_condition(
                &mut marked,
                json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
                    "message": "Eviction API: evicting", "lastTransitionTime": rfc3339(now)}),
            );
            let marked = self
                .store
                .put(&req.rt.store(), req.ns(), req.name(), marked);
            // Our own write must not make the precondition fail.
            if options.resource_version.is_some() {
                options.resource_version = marked["metadata"]["resourceVersion"]
                    .as_str()
                    .map(Into::into);
            }
        }
        self.delete(&req.rt, req.ns(), req.name(), &options, now)?;
        Ok(status::success(&req.rt, req.name(), uid(&pod), 201))
    }

    fn check_budgets(&self, pod: &Value) -> Result<(), ApiStatus> {
        let kind = ("policy".into(), "poddisruptionbudgets".into());
        let budgets = self.store.list(&kind, Some(namespace(pod)));
        let covers = |b: &&Arc<Value>| {
            label_selector_matches(&b["spec"]["selector"], &pod["metadata"]["labels"])
        };
        let budgets: Vec<_> = budgets.iter().filter(covers).collect();
        let budget = match budgets.as_slice() {
            [] => return Ok(()),
            [one] => one,
            _ => {
                return Err(ApiStatus::new(
                    500,
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
                ));
            }
        };
        let Standing {
            healthy, needed, ..
        } = self.standing(budget);
        let unready = !is_ready(pod);
        let always = budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow";
        if unready && (always || (needed > 0 && healthy >= needed)) {
            return Ok(());
        }
        if healthy > needed {
            return Ok(());
        }
        let name = name(budget);
        let mut refusal = ApiStatus::new(
            429,
            "Cannot evict pod as it would violate the pod's disruption budget.",
        );
        refusal.details = json!({"causes": [{"reason": "DisruptionBudget",
            "message": format!("The disruption budget {name} needs {needed} healthy pods and has {healthy} currently")}]});
        Err(refusal)
    }

    /// How a PodDisruptionBudget stands now.
    fn standing(&self, budget: &Value) -> Standing {
        let kind = (String::new(), "pods".into());
        let pods = self.store.list(&kind, Some(namespace(budget)));
        let covered: Vec<_> = pods
            .iter()
            .filter(|p| {
                label_selector_matches(&budget["spec"]["selector"], &p["metadata"]["labels"])
            })
            .collect();
        let expected = covered.len() as i64;
        let healthy = covered
            .iter()
            .filter(|p| !terminating(p) && is_ready(p))
            .count() as i64;
        let count = |field: &str| int_or_percent(&budget["spec"][field], expected, true);
        let needed = match budget["spec"]["maxUnavailable"].is_null() {
            true => count("minAvailable").unwrap_or(1),
            false => expected - count("maxUnavailable").unwrap_or(0),
        };
        Standing {
            expected,
            healthy,
            needed,
        }
    }

    /// The object as a client reads it. The disruption controller keeps a budget's status; here it is always up to date.
    pub fn as_read(&self, req: &ApiRequest, object: &Arc<Value>) -> Arc<Value> {
        if !req.rt.is("policy", "poddisruptionbudgets") {
            return object.clone();
        }
        let Standing {
            expected,
            healthy,
            needed,
        } = self.standing(object);
        let mut read = (**object).clone();
        read["status"] = json!({"expectedPods": expected, "currentHealthy": healthy, "desiredHealthy": needed,
            "disruptionsAllowed": (healthy - needed).max(0), "observedGeneration": read["metadata"]["generation"]});
        Arc::new(read)
    }

    /// POST to a pod's `binding`.
    pub fn bind(
        &mut self,
        req: &ApiRequest,
        body: &Value,
        now: Timestamp,
    ) -> Result<Value, ApiStatus> {
        let pod = self.existing(req)?;
        let refuse = |why: &str| {
            let name = req.name();
            let message =
                format!("Operation cannot be fulfilled on pods/binding \"{name}\": {why}");
            let mut refusal = ApiStatus::new(409, message);
            refusal.details = json!({"name": name, "kind": "pods/binding"});
            Err(refusal)
        };
        if terminating(&pod) {
            return refuse(&format!(
                "pod {} is being deleted, cannot be assigned to a host",
                req.name()
            ));
        }
        let node = text(&pod, "/spec/nodeName");
        if !node.is_empty() {
            return refuse(&format!(
                "pod {} is already assigned to node \"{node}\"",
                req.name()
            ));
        }
        if !gates(&pod).is_empty() {
            return refuse(&format!(
                "pod {} has non-empty .spec.schedulingGates",
                req.name()
            ));
        }
        let mut next = (*pod).clone();
        next["spec"]["nodeName"] = body["target"]["name"].clone();
        add_condition(
            &mut next,
            json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": rfc3339(now)}),
        );
        if !req.dry_run {
            self.store.put(&req.rt.store(), req.ns(), req.name(), next);
        }
        Ok(
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
        )
    }

    /// POST of a review: answered, not stored.
    pub fn review(&self, req: &ApiRequest, body: &Value) -> Option<Value> {
        let mut answer = body.clone();
        answer["apiVersion"] = json!(req.rt.api_version());
        answer["kind"] = json!(req.rt.kind);
        match req.rt.plural.as_str() {
            "selfsubjectaccessreviews" | "subjectaccessreviews" => {
                let user = body["spec"]["user"].as_str().unwrap_or(&req.user);
                let allowed = self
                    .access
                    .as_ref()
                    .is_none_or(|f| f(user, &body["spec"]["resourceAttributes"]));
                answer["status"] = json!({"allowed": allowed});
            }
            "selfsubjectreviews" => {
                answer["status"] =
                    json!({"userInfo": {"username": req.user, "groups": ["system:authenticated"]}});
            }
            _ => return None,
        }
        Some(answer)
    }
}

/// The pods that a PodDisruptionBudget covers: how many, how many of them are healthy, and how many have to be.
struct Standing {
    expected: i64,
    healthy: i64,
    needed: i64,
}

/// The preconditions of an eviction, in the words of that subresource.
fn check_evicted(pod: &Value, options: &DeleteOptions) -> Result<(), ApiStatus> {
    let name = name(pod);
    for (field, what, want, since) in [
        ("uid", "UID", &options.uid, "deleted and then recreated"),
        (
            "resourceVersion",
            "ResourceVersion",
            &options.resource_version,
            "modified",
        ),
    ] {
        let have = pod["metadata"][field].as_str().unwrap_or_default();
        if let Some(want) = want.as_deref().filter(|want| *want != have) {
            let mut refusal = ApiStatus::new(
                409,
                format!(
                    "Operation cannot be fulfilled on Pod \"{name}\": the {what} in the precondition ({want}) does not match the {what} in record ({have}). The object might have been {since}"
                ),
            );
            refusal.details = json!({"name": name, "kind": "Pod"});
            return Err(refusal);
        }
    }
    Ok(())
}

/// Sets a condition in place of the one of the same type.
fn add_condition(object: &mut Value, condition: Value) {
    let list = &mut object["status"]["conditions"];
    if !list.is_array() {
        *list = json!([]);
    }
    if let Some(list) = list.as_array_mut() {
        list.retain(|c| c["type"] != condition["type"]);
        list.push(condition);
    }
}
