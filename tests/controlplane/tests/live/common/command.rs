//! People at the command line.

use super::Stage;
use super::processes::binary_path;
use reattach_tests_controlplane::say;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How a command ended.
#[derive(Debug)]
pub struct Ran {
    /// Its exit code.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ran {
    /// Asserts the exit code.
    #[track_caller]
    pub fn ended(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        self
    }

    /// Asserts that it failed with this code and one sentence that names all these things; gives the sentence.
    #[track_caller]
    pub fn one_sentence(self, code: i32, names: &[&str]) -> String {
        let lines: Vec<&str> = self
            .err
            .lines()
            .filter(|l| l.starts_with("error: "))
            .collect();
        assert!(
            self.code == code && lines.len() == 1 && self.out.is_empty(),
            "{self:#?}"
        );
        let sentence = lines[0].to_owned();
        for name in names {
            assert!(
                sentence.contains(name),
                "{name:?} is not named in: {sentence}"
            );
        }
        say!("  {code}: {sentence}");
        sentence
    }
}

/// Runs a binary of this build with this environment and nothing of ours.
pub async fn run(binary: &str, arguments: &[&str], environment: &[(&str, String)]) -> Ran {
    let mut command = Command::new(binary_path(binary));
    command.args(arguments).env_clear().stdin(Stdio::null());
    command.envs(environment.iter().map(|(k, v)| (*k, v.as_str())));
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .expect("it ran");
    let output = output.expect("it starts");
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

impl Stage {
    /// `kubectl reattach …` with this kubeconfig and the cloud's token.
    pub async fn reattach(&self, kubeconfig: &Path, arguments: &[&str]) -> Ran {
        let mut environment = self.cloud_environment();
        environment.push(("KUBECONFIG", kubeconfig.display().to_string()));
        run("kubectl-reattach", arguments, &environment).await
    }

    /// A user of [`super::StageOptions::users`] gets ClusterRoles within a namespace; answers the kubeconfig.
    pub async fn person(&self, user: &str, namespace: &str, roles: &[&str]) -> PathBuf {
        for role in roles {
            self.create(json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
                "metadata": {"name": format!("{user}-{role}"), "namespace": namespace},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
            }))
            .await;
        }
        self.plane
            .kubeconfig_for(user)
            .expect("a user of the stage")
    }

    /// A user gets a ClusterRole everywhere; answers the kubeconfig.
    pub async fn person_everywhere(&self, user: &str, roles: &[&str]) -> PathBuf {
        for role in roles {
            self.create(json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
                "metadata": {"name": format!("{user}-{role}")},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
            }))
            .await;
        }
        self.plane
            .kubeconfig_for(user)
            .expect("a user of the stage")
    }
}
