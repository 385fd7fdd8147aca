//! Scopes of Linode's personal access tokens, such as `volumes:read_write`.

/// A scope of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scope {
    resource: &'static str,
    write: bool,
}

impl Scope {
    pub(super) const fn read(resource: &'static str) -> Self {
        Self {
            resource,
            write: false,
        }
    }

    pub(super) const fn write(resource: &'static str) -> Self {
        Self {
            resource,
            write: true,
        }
    }

    pub(super) fn word(self) -> String {
        format!(
            "{}:{}",
            self.resource,
            if self.write {
                "read_write"
            } else {
                "read_only"
            }
        )
    }

    /// Returns whether these scopes contain this one: `*` is all, and `read_write` includes `read_only`.
    pub(super) fn granted_by(self, scopes: &[String]) -> bool {
        scopes.iter().any(|scope| {
            scope == "*"
                || *scope == self.word()
                || *scope
                    == Self {
                        write: true,
                        ..self
                    }
                    .word()
        })
    }
}
