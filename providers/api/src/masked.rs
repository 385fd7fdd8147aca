//! Masks credentials in answers before anything reads the answer.
//!
//! A cloud or a proxy may echo the request's credential: in an error, in a page of its own, in a header. Errors, journals,
//! statuses and logs quote answers, and must not contain the credential. So it is masked here, at the one place that
//! every answer passes, and not at each place that quotes a text.

use crate::{HttpTransport, TransportError};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use tower::ServiceExt;

/// Replacement of a credential.
const MASK: &str = "[masked]";

/// Minimum length of a secret that is masked, in characters. A shorter one would match ordinary words; no cloud issues one.
const LEAST_CHARS: usize = 8;

/// Headers of a request that contain a credential, besides `Authorization`.
const CREDENTIALS: [&str; 3] = [
    "x-amz-security-token",
    "x-aws-ec2-metadata-token",
    "proxy-authorization",
];

/// Wraps the transport: the credentials of a request are masked in its answer and in its error. Masked are the forms as
/// sent, percent-encoded, in base64 and with the escapes of JSON.
pub fn masking(transport: HttpTransport) -> HttpTransport {
    HttpTransport::new(tower::service_fn(move |request: Request<Bytes>| {
        let secrets = Secrets::of(request.headers());
        let transport = transport.clone();
        async move {
            match transport.oneshot(request).await {
                Ok(answer) => Ok(secrets.masked_answer(answer)),
                Err(error) => Err(TransportError::new(
                    error.kind,
                    secrets.masked(&error.message),
                )),
            }
        }
    }))
}

/// All forms of a request's credentials, in lower case, longest first.
struct Secrets(Vec<String>);

impl Secrets {
    fn of(headers: &HeaderMap) -> Self {
        let mut plain: Vec<String> = Vec::new();
        for name in [header::AUTHORIZATION.as_str()]
            .into_iter()
            .chain(CREDENTIALS)
        {
            let values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
            for value in values {
                plain.push(value.to_owned());
                // `Bearer TOKEN`, `Basic PAIR`, and of AWS's signatures the last part.
                plain.extend(value.split_once(' ').map(|(_, token)| token.to_owned()));
                plain.extend(
                    value
                        .split_once("Signature=")
                        .map(|(_, signature)| signature.to_owned()),
                );
            }
        }
        let mut forms: Vec<String> = plain.iter().flat_map(|secret| forms(secret)).collect();
        forms.retain(|form| form.chars().count() >= LEAST_CHARS);
        forms.sort_by_key(|form| std::cmp::Reverse(form.len()));
        forms.dedup();
        Self(forms)
    }

    fn masked_answer(&self, answer: Response<Bytes>) -> Response<Bytes> {
        let (mut parts, body) = answer.into_parts();
        for value in parts.headers.values_mut() {
            let Ok(text) = value.to_str() else { continue };
            let masked = self.masked(text);
            if masked != text
                && let Ok(masked) = HeaderValue::from_str(&masked)
            {
                *value = masked;
            }
        }
        let body = match std::str::from_utf8(&body) {
            Ok(text) if self.occurs_in(text) => Bytes::from(self.masked(text)),
            Ok(_) => body,
            // A body that is no text is never quoted. It is converted only to mask a credential in it.
            Err(_) => {
                let text = String::from_utf8_lossy(&body);
                if self.occurs_in(&text) {
                    Bytes::from(self.masked(&text))
                } else {
                    body
                }
            }
        };
        Response::from_parts(parts, body)
    }

    fn occurs_in(&self, text: &str) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let lower = text.to_ascii_lowercase();
        self.0.iter().any(|form| lower.contains(form.as_str()))
    }

    /// Returns the text with all forms of the credentials masked, in upper and lower case.
    fn masked(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for form in &self.0 {
            // Converting ASCII letters keeps the byte positions.
            let lower = text.to_ascii_lowercase();
            let (mut out, mut from) = (String::new(), 0);
            for (at, found) in lower.match_indices(form.as_str()) {
                out.push_str(&text[from..at]);
                out.push_str(MASK);
                from = at + found.len();
            }
            out.push_str(&text[from..]);
            text = out;
        }
        text
    }
}

/// Returns the forms in which an answer may contain a secret, in lower case.
fn forms(secret: &str) -> Vec<String> {
    let percent: String = secret
        .bytes()
        .map(|b| match b {
            b'-' | b'.' | b'_' | b'~' => char::from(b).to_string(),
            b if b.is_ascii_alphanumeric() => char::from(b).to_string(),
            b => format!("%{b:02x}"),
        })
        .collect();
    let standard = base64(secret.as_bytes());
    let url = standard.replace('+', "-").replace('/', "_");
    let json = secret.replace('\\', "\\\\").replace('"', "\\\"");
    let all = [
        secret.to_owned(),
        percent,
        standard,
        url,
        json.replace('/', "\\/"),
        json,
    ];
    all.into_iter()
        .map(|form| form.to_ascii_lowercase())
        .collect()
}

/// Encodes in base64 (RFC 4648) without padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for three in bytes.chunks(3) {
        let byte = |i: usize| u32::from(three.get(i).copied().unwrap_or(0));
        let bits = (byte(0) << 16) | (byte(1) << 8) | byte(2);
        for digit in 0..=three.len() {
            let at = (bits >> (18 - 6 * digit)) & 63;
            out.push(char::from(DIGITS[at as usize]));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TransportErrorKind;
    use futures::executor::block_on;
    use http::StatusCode;

    const TOKEN: &str = "s3cret/Tok+en\"with~all=0123456789";

    fn request() -> Request<Bytes> {
        let request = Request::get("https://cloud.invalid/v4")
            .header("authorization", format!("Bearer {TOKEN}"));
        request
            .header("x-amz-security-token", "a-session-token-of-aws")
            .body(Bytes::new())
            .unwrap()
    }

    fn answered(body: String) -> Response<Bytes> {
        let echo = HttpTransport::new(tower::service_fn(move |_: Request<Bytes>| {
            let body = body.clone();
            async move {
                let answer = Response::builder()
                    .status(StatusCode::FORBIDDEN)
                    .header("x-echo", TOKEN);
                Ok(answer.body(Bytes::from(body)).unwrap())
            }
        }));
        block_on(masking(echo).oneshot(request())).unwrap()
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        for (text, want) in [
            ("", ""),
            ("f", "Zg"),
            ("fo", "Zm8"),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg"),
            ("fooba", "Zm9vYmE"),
        ] {
            assert_eq!(base64(text.as_bytes()), want);
        }
    }

    #[test]
    fn every_form_of_a_credential_is_masked() {
        let percent = "s3cret%2FTok%2Ben%22with~all%3D0123456789";
        let json = format!("\"{}\"", TOKEN.replace('"', "\\\""));
        for echo in [
            format!("no such token: {TOKEN}."),
            format!("Authorization: Bearer {TOKEN}"),
            format!("GET /?token={percent}"),
            format!("GET /?token={}", percent.to_lowercase()),
            format!("basic {}", base64(TOKEN.as_bytes())),
            format!("header {}==", base64(format!("Bearer {TOKEN}").as_bytes())),
            format!("{{\"errors\":[{{\"reason\":{json}}}]}}"),
            TOKEN.to_uppercase(),
            "X-Amz-Security-Token: a-session-token-of-aws".to_owned(),
        ] {
            let answer = answered(echo.clone());
            let body = String::from_utf8(answer.body().to_vec()).unwrap();
            assert!(body.contains(MASK), "{echo}: {body}");
            for secret in [
                "0123456789",
                "session-token-of",
                &base64(TOKEN.as_bytes())[4..20],
            ] {
                assert!(!body.contains(secret), "{echo}: {body}");
            }
            assert_eq!(answer.headers()["x-echo"], MASK);
        }
    }

    #[test]
    fn an_answer_without_a_credential_is_untouched() {
        let body = "{\"errors\":[{\"reason\":\"Bearer token missing\"}]}";
        assert_eq!(answered(body.to_owned()).body(), body);
    }

    #[test]
    fn the_error_of_a_transport_is_masked() {
        let broken = HttpTransport::new(tower::service_fn(|_: Request<Bytes>| async {
            let said = format!("proxy refused Bearer {TOKEN}");
            Err(TransportError::new(TransportErrorKind::AfterSend, said))
        }));
        let error = block_on(masking(broken).oneshot(request())).unwrap_err();
        assert_eq!(
            error,
            TransportError::new(TransportErrorKind::AfterSend, "proxy refused [masked]")
        );
    }
}
