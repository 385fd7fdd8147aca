//! Keys, tokens and kubeconfigs.

use std::path::{Path, PathBuf};

use aws_lc_rs::{
    encoding::AsDer,
    rand::fill,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::json;

use crate::{Component, HarnessError, User, ports::Ports, work_dir::WorkDir};

/// The group that RBAC lets do everything.
const MASTERS: &str = "system:masters";

/// The administrator's user name, and the name of its kubeconfig.
pub(crate) const ADMIN: &str = "admin";

/// Everybody with a static token.
pub(crate) struct Tokens(Vec<(User, String)>);

impl Tokens {
    /// The administrator, one user per component that is a client, and those of the options.
    pub fn issue(users: &[User]) -> Result<Self, HarnessError> {
        let user = |name: &str, group: Option<&str>| User {
            name: name.into(),
            groups: group.map(str::to_owned).into_iter().collect(),
        };
        let mut all = vec![
            user(ADMIN, Some(MASTERS)),
            // Without a ServiceAccount per controller (the stock default) this one user does what all of them may. With
            // them, its rate limit would make every start 4 s longer; the user agent names the controller anyway.
            user(
                &format!("system:{}", Component::ControllerManager),
                Some(MASTERS),
            ),
            // Bootstrap RBAC knows it by name.
            user(&format!("system:{}", Component::Scheduler), None),
            user(Component::CsiAttacher.name(), Some(MASTERS)),
        ];
        all.extend_from_slice(users);
        all.into_iter()
            .map(|user| Ok((user, random_token()?)))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The token file of kube-apiserver: `token,user,uid,"group,group"`; an empty last field would be a group.
    pub fn csv(&self) -> String {
        let line = |(at, (user, token)): (usize, &(User, String))| {
            let groups = if user.groups.is_empty() {
                String::new()
            } else {
                format!(",\"{}\"", user.groups.join(","))
            };
            format!("{token},\"{}\",{}{groups}\n", user.name, at + 1)
        };
        self.0.iter().enumerate().map(line).collect()
    }

    pub fn of(&self, name: &str) -> Result<&str, HarnessError> {
        let found = self.0.iter().find(|(user, _)| user.name == name);
        found
            .map(|(_, token)| token.as_str())
            .ok_or_else(|| HarnessError::UnknownUser {
                user: name.to_owned(),
            })
    }
}

fn random_token() -> Result<String, HarnessError> {
    let mut bytes = [0_u8; 16];
    fill(&mut bytes).map_err(|_| no_randomness())?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn no_randomness() -> HarnessError {
    HarnessError::io("cannot make a key")(std::io::Error::other(
        "the cryptographic library refused",
    ))
}

/// A new P-256 key as PEM, in the form (RFC 5915) that Kubernetes reads as a private and as a public key.
pub(crate) fn service_account_key() -> Result<String, HarnessError> {
    let pair =
        EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(|_| no_randomness())?;
    let der: aws_lc_rs::encoding::EcPrivateKeyRfc5915Der =
        pair.private_key().as_der().map_err(|_| no_randomness())?;
    Ok(pem::encode(&pem::Pem::new("EC PRIVATE KEY", der.as_ref())))
}

/// Writes a kubeconfig (JSON, which is YAML too) for a bearer token and returns its path.
pub(crate) fn write_kubeconfig(
    dir: &WorkDir,
    ports: &Ports,
    file: &str,
    user: &str,
    token: &str,
) -> Result<PathBuf, HarnessError> {
    let path = dir.kubeconfig(file);
    let content = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{ "name": "test", "cluster": {
            "server": ports.api_server_url(),
            "certificate-authority": dir.api_server_certificate(),
        }}],
        "users": [{ "name": user, "user": { "token": token } }],
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": user, "namespace": "default" } }],
    });
    dir.write(&path, &format!("{content:#}\n"))?;
    Ok(path)
}

/// A client with kube's default behaviour (it retries, as an administrator's tool may).
pub(crate) async fn client(kubeconfig: &Path) -> Result<Client, HarnessError> {
    let refused = |reason: String| HarnessError::Kubeconfig {
        path: kubeconfig.to_owned(),
        reason,
    };
    let parsed = Kubeconfig::read_from(kubeconfig).map_err(|e| refused(e.to_string()))?;
    let config = Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default())
        .await
        .map_err(|e| refused(e.to_string()))?;
    Client::try_from(config).map_err(|e| refused(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_file_has_one_line_for_each_user() {
        let jane = User {
            name: "jane".into(),
            groups: vec!["ops".into(), "oncall".into()],
        };
        let tokens = Tokens::issue(&[jane]).expect("tokens");
        let csv = tokens.csv();
        let token = tokens.of("jane").expect("jane's token");
        assert!(
            csv.lines()
                .any(|line| line == format!("{token},\"jane\",5,\"ops,oncall\"")),
            "{csv}"
        );
        let scheduler = tokens
            .of("system:kube-scheduler")
            .expect("the scheduler's token");
        assert!(
            csv.lines()
                .any(|line| line == format!("{scheduler},\"system:kube-scheduler\",3")),
            "{csv}"
        );
        assert!(
            matches!(tokens.of("joe"), Err(HarnessError::UnknownUser { user }) if user == "joe")
        );
    }
}
