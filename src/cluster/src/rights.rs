//! Asking the API server how far a person's right reaches now.
//!
//! # Guarantees
//! Nothing is written: a review is answered and not stored. A review that fails says [`Reach::Unknown`], which allows nothing.
//!
//! # Caveats
//! Groups are those that the record has, which admission compared with the ones that the API server authenticated when the
//! word was written. A person who was taken out of a group since keeps it here until the record is over; a binding that was
//! taken away is seen.

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SubjectAccessReview,
    SubjectAccessReviewSpec, SubjectAccessReviewStatus,
};
use kube::api::PostParams;
use kube::{Api, Client};
use reattach_core::authority::Reach;
use reattach_core::ids::ObjectName;

/// A user as a record names them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordedUser {
    /// The user name that the API server authenticated.
    pub name: String,
    /// Groups of the user. A group that is missing here only takes rights away.
    pub groups: Vec<String>,
}

/// A record keeps at most so many groups, each of at most as many characters (the bounds of the CustomResourceDefinition).
const MOST_GROUPS: usize = 256;

impl RecordedUser {
    /// Leaves out the groups that follow from the name, and what exceeds the record's bounds.
    pub fn new(name: String, groups: Vec<String>) -> Self {
        let own = |g: &String| {
            *g != "system:authenticated"
                && !g.starts_with("system:serviceaccounts")
                && g.chars().count() <= MOST_GROUPS
        };
        Self {
            name,
            groups: groups.into_iter().filter(own).take(MOST_GROUPS).collect(),
        }
    }

    /// The recorded groups, and those that Kubernetes adds when it authenticates the user.
    fn all_groups(&self) -> Vec<String> {
        let mut groups = self.groups.clone();
        groups.push("system:authenticated".to_owned());
        let account = self.name.strip_prefix("system:serviceaccount:");
        if let Some((namespace, _)) = account.and_then(|a| a.split_once(':')) {
            groups.push("system:serviceaccounts".to_owned());
            groups.push(format!("system:serviceaccounts:{namespace}"));
        }
        groups.sort();
        groups.dedup();
        groups
    }
}

/// How far `user` has the verb on VolumeRecoveries, seen from this one. `me` is the user name of `records`: a process asks about
/// itself by a review that needs no right.
pub async fn reach(
    records: &Client,
    me: &str,
    user: &RecordedUser,
    verb: &str,
    recovery: &ObjectName,
) -> Reach {
    let everywhere = attributes(verb, None);
    match is_allowed(records, me, user, everywhere).await {
        Ok(true) => return Reach::Cluster,
        Ok(false) => {}
        Err(why) => return Reach::Unknown { why },
    }
    match is_allowed(records, me, user, attributes(verb, Some(recovery))).await {
        Ok(true) => Reach::Namespace,
        Ok(false) => Reach::Nowhere,
        Err(why) => Reach::Unknown { why },
    }
}

/// Without a recovery: all of them in all namespaces, which only a right at cluster scope gives.
fn attributes(verb: &str, recovery: Option<&ObjectName>) -> ResourceAttributes {
    ResourceAttributes {
        group: Some("reattach.dev".to_owned()),
        resource: Some("volumerecoveries".to_owned()),
        verb: Some(verb.to_owned()),
        namespace: recovery.map(|r| r.namespace.clone()),
        name: recovery.map(|r| r.name.clone()),
        ..ResourceAttributes::default()
    }
}

async fn is_allowed(
    records: &Client,
    me: &str,
    user: &RecordedUser,
    attributes: ResourceAttributes,
) -> Result<bool, String> {
    let status = if user.name == me {
        review_self(records, attributes).await
    } else {
        let spec = SubjectAccessReviewSpec {
            user: Some(user.name.clone()),
            groups: Some(user.all_groups()),
            resource_attributes: Some(attributes),
            ..SubjectAccessReviewSpec::default()
        };
        let review = SubjectAccessReview {
            spec,
            ..SubjectAccessReview::default()
        };
        Api::<SubjectAccessReview>::all(records.clone())
            .create(&PostParams::default(), &review)
            .await
            .map(|r| r.status)
    };
    let status: SubjectAccessReviewStatus = match status {
        Ok(status) => status.ok_or("the API server gave no answer to the access review")?,
        Err(kube::Error::Api(s)) if s.is_forbidden() => {
            return Err(
                "this process may not create subjectaccessreviews; apply deploy/ again".to_owned(),
            );
        }
        Err(error) => return Err(error.to_string()),
    };
    if !status.allowed
        && let Some(error) = status.evaluation_error.filter(|e| !e.is_empty())
    {
        return Err(error);
    }
    Ok(status.allowed && status.denied != Some(true))
}

/// Asks whether this process itself has a right.
pub(crate) async fn review_self(
    records: &Client,
    attributes: ResourceAttributes,
) -> Result<Option<SubjectAccessReviewStatus>, kube::Error> {
    let spec = SelfSubjectAccessReviewSpec {
        resource_attributes: Some(attributes),
        ..SelfSubjectAccessReviewSpec::default()
    };
    let review = SelfSubjectAccessReview {
        spec,
        ..SelfSubjectAccessReview::default()
    };
    let api: Api<SelfSubjectAccessReview> = Api::all(records.clone());
    Ok(api.create(&PostParams::default(), &review).await?.status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_account_has_its_groups_without_a_record_of_them() {
        let user = RecordedUser {
            name: "system:serviceaccount:shop:ci".into(),
            groups: Vec::new(),
        };
        assert_eq!(
            user.all_groups(),
            [
                "system:authenticated",
                "system:serviceaccounts",
                "system:serviceaccounts:shop"
            ]
        );
    }
}
