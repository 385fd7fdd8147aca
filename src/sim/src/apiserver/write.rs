//! Create, update, patch and delete.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::defaults;
use super::hooks::AdmissionRequest;
use super::managers;
use super::patch::{self, PatchKind};
use super::request::{ApiRequest, Verb};
use super::resource::{self, ResourceType};
use super::rules::{
    check_changed_pod, check_new_pod, check_versions, established, intent, pod_grace, prune,
    spec_differs,
};
use super::state::State;
use super::status::{self, ApiStatus};
use crate::clock::rfc3339;
use crate::object::{items, name, terminating, text, uid};

/// `DeleteOptions`, as far as they matter here.
#[derive(Debug, Clone, Default)]
pub(super) struct DeleteOptions {
    pub grace: Option<i64>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub orphan: bool,
    pub dry_run: bool,
}

impl DeleteOptions {
    pub fn parse(body: &Value, req: &ApiRequest) -> Self {
        let text = |v: &Value| v.as_str().map(str::to_owned);
        let policy = text(&body["propagationPolicy"])
            .or_else(|| req.query("propagationPolicy").map(Into::into));
        Self {
            grace: body["gracePeriodSeconds"]
                .as_i64()
                .or_else(|| req.query("gracePeriodSeconds").and_then(|g| g.parse().ok())),
            uid: text(&body["preconditions"]["uid"]),
            resource_version: text(&body["preconditions"]["resourceVersion"]),
            orphan: policy.as_deref() == Some("Orphan"),
            dry_run: req.dry_run || items(body, "/dryRun").any(|x| x == "All"),
        }
    }
}

impl State {
    /// Runs admission over `object`; patches are applied in order.
    fn admit(
        &self,
        req: &ApiRequest,
        name: &str,
        object: Option<&mut Value>,
        old: Option<&Value>,
    ) -> Result<(), ApiStatus> {
        let mut object = object;
        for admission in &self.admission {
            let result = admission(&AdmissionRequest {
                verb: req.verb,
                group: &req.rt.group,
                resource: &req.rt.plural,
                subresource: req.subresource.as_deref(),
                namespace: req.ns(),
                name,
                user: &req.user,
                object: object.as_deref(),
                old,
                dry_run: req.dry_run,
                store: &self.store,
            })?;
            if let Some(object) = object.as_deref_mut() {
                json_patch::patch(object, &result).map_err(|e| {
                    ApiStatus::new(
                        500,
                        format!("admission returned a patch that does not apply: {e}"),
                    )
                })?;
            }
        }
        Ok(())
    }

    /// Refuses a namespace that does not exist or is going away.
    fn check_namespace(&self, req: &ApiRequest, name: &str) -> Result<(), ApiStatus> {
        if !req.rt.namespaced {
            return Ok(());
        }
        let namespaces = self.type_of("", "namespaces");
        match self
            .store
            .get(&(String::new(), "namespaces".into()), "", req.ns())
        {
            None => Err(namespaces.map_or_else(ApiStatus::no_such_path, |rt| {
                ApiStatus::not_found(&rt, req.ns())
            })),
            Some(ns) if terminating(&ns) => Err(ApiStatus::forbidden(
                &req.rt,
                name,
                &format!(
                    "unable to create new content in namespace {} because it is being terminated",
                    req.ns()
                ),
            )),
            Some(_) => Ok(()),
        }
    }

    /// Gives an object without a name one that begins with its `generateName`.
    fn generate_name(&mut self, rt: &ResourceType, object: &mut Value) -> Result<(), ApiStatus> {
        if !name(object).is_empty() {
            return Ok(());
        }
        let prefix = text(object, "/metadata/generateName");
        if prefix.is_empty() {
            let why = "metadata.name: Required value: name or generateName is required";
            return Err(ApiStatus::invalid(rt, "", why));
        }
        object["metadata"]["name"] = json!(format!("{prefix}{}", self.rng.suffix(5)));
        Ok(())
    }

    /// POST to a collection (or the creating end of an apply).
    pub fn create(
        &mut self,
        req: &ApiRequest,
        mut object: Value,
        now: Timestamp,
    ) -> Result<Arc<Value>, ApiStatus> {
        let rt = &req.rt;
        check_sent(req, &object)?;
        if rt.is_new_event() {
            super::events::to_core(&mut object);
        }
        self.generate_name(rt, &mut object)?;
        let name = name(&object).to_owned();
        self.check_namespace(req, &name)?;
        let store = rt.store();
        if self.store.get(&store, req.ns(), &name).is_some() {
            return Err(ApiStatus::already_exists(rt, &name));
        }
        if !text(&object, "/metadata/resourceVersion").is_empty() {
            return Err(ApiStatus::bad_request(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        object["apiVersion"] = json!(if rt.is_new_event() {
            "v1".into()
        } else {
            rt.api_version()
        });
        object["kind"] = json!(rt.kind);
        defaults::on_create(rt, &mut object);
        if let Some(schema) = &rt.schema {
            defaults::from_schema(schema, &mut object);
        }
        if rt.is_pod() {
            self.hold(req.ns(), &mut object);
        }
        self.admit(req, &name, Some(&mut object), None)?;
        if rt.is_pod() {
            check_new_pod(rt, &name, &mut object)?;
        }
        let uid = self.rng.uuid();
        let meta = &mut object["metadata"];
        if rt.namespaced {
            meta["namespace"] = json!(req.ns());
        }
        meta["uid"] = json!(uid);
        meta["creationTimestamp"] = json!(rfc3339(now));
        meta["generation"] = json!(1);
        for field in [
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "managedFields",
            "selfLink",
        ] {
            if let Some(map) = meta.as_object_mut() {
                map.remove(field);
            }
        }
        if rt.is("apiextensions.k8s.io", "customresourcedefinitions") {
            established(&mut object, now);
        }
        if managers::are_kept(req) {
            managers::track(req, None, &mut object, Vec::new(), now);
        }
        if req.dry_run {
            return Ok(Arc::new(object));
        }
        if rt.is("apiextensions.k8s.io", "customresourcedefinitions") {
            self.register_types(resource::from_crd(&object));
        }
        Ok(self.store.put(&store, req.ns(), &name, object))
    }

    /// PUT of an object, or of its `status`.
    pub fn update(
        &mut self,
        req: &ApiRequest,
        mut object: Value,
        now: Timestamp,
    ) -> Result<Arc<Value>, ApiStatus> {
        if req.rt.is_new_event() {
            super::events::to_core(&mut object);
        }
        let old = self.existing(req)?;
        self.replace(req, old, object, now)
    }

    pub fn existing(&self, req: &ApiRequest) -> Result<Arc<Value>, ApiStatus> {
        let found = self.store.get(&req.rt.store(), req.ns(), req.name());
        found.ok_or_else(|| ApiStatus::not_found(&req.rt, req.name()))
    }

    /// Stores `new` over `old` under the rules of an update.
    pub fn replace(
        &mut self,
        req: &ApiRequest,
        old: Arc<Value>,
        new: Value,
        now: Timestamp,
    ) -> Result<Arc<Value>, ApiStatus> {
        let (rt, name) = (&req.rt, req.name());
        let status_only = req.subresource.as_deref() == Some("status");
        if status_only && !rt.status {
            return Err(ApiStatus::no_such_path());
        }
        if new["metadata"]["name"].as_str().is_some_and(|n| n != name) {
            return Err(ApiStatus::bad_request(
                "the name of the object does not match the name on the URL",
            ));
        }
        check_versions(req, name, &old, &new["metadata"])?;
        let managers = managers::base(req, Some(&old), &new);
        let mut next = if status_only {
            let mut next = (*old).clone();
            next["status"] = new["status"].clone();
            next
        } else {
            let mut next = new;
            if rt.status {
                next["status"] = old["status"].clone();
            }
            next
        };
        for field in [
            "name",
            "namespace",
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generation",
            "resourceVersion",
        ] {
            next["metadata"][field] = old["metadata"][field].clone();
        }
        next["apiVersion"] = old["apiVersion"].clone();
        next["kind"] = old["kind"].clone();
        prune(&mut next);
        if managers::are_kept(req) && !managers.is_empty() {
            next["metadata"]["managedFields"] = json!(managers);
        }
        if let Some(schema) = &rt.schema {
            defaults::from_schema(schema, &mut next);
        }
        if rt.is_pod() && !status_only {
            check_changed_pod(rt, name, &old, &next)?;
        }
        self.admit(req, name, Some(&mut next), Some(&old))?;
        if !status_only && spec_differs(&old, &next) {
            next["metadata"]["generation"] =
                json!(old["metadata"]["generation"].as_i64().unwrap_or(0) + 1);
        }
        if next == *old {
            return Ok(old);
        }
        if managers::are_kept(req) {
            managers::track(req, Some(&old), &mut next, managers, now);
        }
        if req.dry_run {
            return Ok(Arc::new(next));
        }
        let done = terminating(&next)
            && items(&next, "/metadata/finalizers").next().is_none()
            && (!rt.is_pod() || next["metadata"]["deletionGracePeriodSeconds"].as_i64() == Some(0))
            && !rt.is("", "namespaces");
        let stored = self.store.put(&rt.store(), req.ns(), name, next);
        if done {
            return Ok(self.remove(rt, req.ns(), name, now).unwrap_or(stored));
        }
        Ok(stored)
    }

    /// PATCH of an object or of its `status`; an apply may create.
    pub fn patch(
        &mut self,
        req: &ApiRequest,
        body: &Value,
        now: Timestamp,
    ) -> Result<(u16, Arc<Value>), ApiStatus> {
        let kind = patch::kind_of(req)?;
        let store = req.rt.store();
        let applied_key = (
            store.clone(),
            format!("{}/{}", req.ns(), req.name()),
            format!(
                "{}/{}",
                req.query("fieldManager").unwrap_or_default(),
                req.subresource.as_deref().unwrap_or_default()
            ),
        );
        let Some(old) = self.store.get(&store, req.ns(), req.name()) else {
            if kind != PatchKind::Apply || req.subresource.is_some() {
                return Err(ApiStatus::not_found(&req.rt, req.name()));
            }
            let mut object = body.clone();
            object["metadata"]["name"] = json!(req.name());
            let mut create = req.clone();
            create.verb = Verb::Create;
            let made = self.create(&create, object, now)?;
            if !req.dry_run {
                self.applied.insert(applied_key, intent(body));
            }
            return Ok((201, made));
        };
        let mut target = super::store::outward(&req.rt, &old);
        if kind == PatchKind::Apply
            && let Some(before) = self.applied.get(&applied_key)
        {
            patch::drop_unapplied(&mut target, before, &intent(body));
        }
        patch::apply(kind, &mut target, body)?;
        if req.rt.is_new_event() {
            super::events::to_core(&mut target);
        }
        let stored = self.replace(req, old, target, now)?;
        if kind == PatchKind::Apply && !req.dry_run {
            self.applied.insert(applied_key, intent(body));
        }
        Ok((200, stored))
    }

    /// DELETE of one object: the remaining object, or the last state and `true` when it is gone.
    pub fn delete(
        &mut self,
        rt: &ResourceType,
        ns: &str,
        name: &str,
        options: &DeleteOptions,
        now: Timestamp,
    ) -> Result<(Arc<Value>, bool), ApiStatus> {
        let store = rt.store();
        let object = self
            .store
            .get(&store, ns, name)
            .ok_or_else(|| ApiStatus::not_found(rt, name))?;
        let meta = &object["metadata"];
        for (field, what, want) in [
            ("uid", "UID", &options.uid),
            (
                "resourceVersion",
                "ResourceVersion",
                &options.resource_version,
            ),
        ] {
            if let Some(want) = want
                && meta[field].as_str() != Some(want)
            {
                let have = meta[field].as_str().unwrap_or_default();
                let why = format!(
                    "Precondition failed: {what} in precondition: {want}, {what} in object meta: {have}"
                );
                return Err(ApiStatus::conflict(rt, name, &why));
            }
        }
        let grace = if rt.is_pod() {
            pod_grace(&object, options.grace)
        } else {
            0
        };
        let has_finalizers = items(meta, "/finalizers").next().is_some();
        let marked_grace =
            terminating(&object).then(|| meta["deletionGracePeriodSeconds"].as_i64().unwrap_or(0));
        if options.dry_run {
            return Ok((object, !has_finalizers && grace == 0));
        }
        if rt.is("", "namespaces") {
            return Ok(self.delete_namespace(&object, name, now));
        }
        if grace == 0 && !has_finalizers {
            if options.orphan {
                self.orphan_dependents(uid(&object));
            }
            let last = self.remove(rt, ns, name, now).unwrap_or(object);
            return Ok((last, true));
        }
        if marked_grace.is_some_and(|have| have <= grace) {
            return Ok((object, false));
        }
        let mut next = (*object).clone();
        let at = now
            .checked_add(SignedDuration::from_secs(grace))
            .unwrap_or(now);
        next["metadata"]["deletionTimestamp"] = json!(rfc3339(at));
        next["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        next["metadata"]["generation"] = json!(meta["generation"].as_i64().unwrap_or(0) + 1);
        Ok((self.store.put(&store, ns, name, next), false))
    }

    /// DELETE as a request: admission, then [`State::delete`]. The answer is the object or a Status.
    pub fn delete_request(
        &mut self,
        req: &ApiRequest,
        body: &Value,
        now: Timestamp,
    ) -> Result<Value, ApiStatus> {
        let options = DeleteOptions::parse(body, req);
        let old = self.existing(req)?;
        self.admit(req, req.name(), None, Some(&old))?;
        let (object, gone) = self.delete(&req.rt, req.ns(), req.name(), &options, now)?;
        if gone && !req.rt.is_pod() {
            return Ok(status::success(&req.rt, req.name(), uid(&object), 200));
        }
        Ok(super::store::outward(&req.rt, &object))
    }
}

/// What a client sends to be created must be of the kind and in the namespace that it sends it to.
fn check_sent(req: &ApiRequest, object: &Value) -> Result<(), ApiStatus> {
    let (rt, kind) = (&req.rt, text(object, "/kind"));
    if !object["metadata"].is_object() {
        return Err(ApiStatus::bad_request(
            "the object provided has no metadata",
        ));
    }
    if !kind.is_empty() && kind != rt.kind {
        return Err(ApiStatus::bad_request(format!(
            "{kind} in version {:?} cannot be handled as a {}",
            rt.version, rt.kind
        )));
    }
    if let Some(ns) = object["metadata"]["namespace"].as_str()
        && rt.namespaced
        && ns != req.ns()
    {
        return Err(ApiStatus::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}
