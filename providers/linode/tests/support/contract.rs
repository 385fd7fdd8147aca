//! Checks requests and answers against Linode's own API description.

use bytes::Bytes;
use http::{Method, Request, Response};
use jsonschema::{Draft, Validator};
use reattach_provider_api::HttpTransport;
use serde_json::{Map, Value};
use std::{
    path::Path,
    sync::{Arc, Mutex},
};
use tower::ServiceExt;

const DESCRIPTION: &str = "../../tests/fixtures/linode/openapi-4.189.0-subset.json";

/// Operators of `X-Filter`, from the description's parameter schema and its text.
const OPERATORS: [&str; 10] = [
    "+and",
    "+or",
    "+gt",
    "+gte",
    "+lt",
    "+lte",
    "+neq",
    "+contains",
    "+order",
    "+order_by",
];

/// Checks the requests and answers of a transport. Clones share their findings.
#[derive(Clone)]
pub struct Contract {
    description: Arc<Value>,
    seen: Arc<Mutex<Seen>>,
}

/// The findings so far.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Operation IDs of the description, one per request.
    pub operations: Vec<String>,
    /// Violations of the description.
    pub violations: Vec<String>,
}

impl Contract {
    pub fn load() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(DESCRIPTION);
        let text = std::fs::read_to_string(&path).expect("the API description");
        Self {
            description: Arc::new(serde_json::from_str(&text).expect("JSON")),
            seen: Arc::default(),
        }
    }

    pub fn seen(&self) -> Seen {
        self.seen.lock().expect("no panic while held").clone()
    }

    /// Panics with all violations of the description so far.
    pub fn assert_kept(&self) {
        let seen = self.seen();
        assert!(!seen.operations.is_empty(), "nothing was checked");
        assert!(seen.violations.is_empty(), "{:#?}", seen.violations);
    }

    /// Wraps a transport with the check.
    pub fn watch(&self, inner: HttpTransport) -> HttpTransport {
        let contract = self.clone();
        HttpTransport::new(tower::service_fn(move |request: Request<Bytes>| {
            let (contract, inner) = (contract.clone(), inner.clone());
            async move {
                let operation = contract.request(&request);
                let answer = inner.oneshot(request).await?;
                if let Some(operation) = operation {
                    contract.answer(&operation, &answer);
                }
                Ok(answer)
            }
        }))
    }

    fn violated(&self, what: String) {
        self.seen
            .lock()
            .expect("no panic while held")
            .violations
            .push(what);
    }

    /// Checks a request. Returns its operation.
    fn request(&self, request: &Request<Bytes>) -> Option<Value> {
        let name = format!("{} {}", request.method(), request.uri().path());
        let Some((item, parameters)) = self.find(request.uri().path()) else {
            self.violated(format!("{name}: no such path"));
            return None;
        };
        let method = request.method().as_str().to_lowercase();
        let Some(operation) = item.get(&method).cloned() else {
            self.violated(format!("{name}: no such method"));
            return None;
        };
        let id = operation["operationId"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        self.seen
            .lock()
            .expect("no panic while held")
            .operations
            .push(id);
        self.check_path(&name, item, &parameters);
        self.check_query(&name, &operation, request.uri().query().unwrap_or_default());
        self.check_filter(&name, &operation, request);
        self.check_body(&name, &operation, request.body());
        let bearer = request
            .headers()
            .get("authorization")
            .and_then(|v| v.to_str().ok());
        if !bearer.is_some_and(|v| v.len() > 7 && v.starts_with("Bearer ")) {
            self.violated(format!("{name}: no bearer token"));
        }
        Some(operation)
    }

    /// Returns the path item whose template matches, and the values of its parameters. Literal parts win over parameters.
    fn find(&self, path: &str) -> Option<(&Value, Vec<(String, String)>)> {
        let given: Vec<_> = path.split('/').collect();
        let paths = self.description["paths"].as_object()?;
        let mut best: Option<(&Value, Vec<(String, String)>)> = None;
        for (template, item) in paths {
            let parts: Vec<_> = template.split('/').collect();
            if parts.len() != given.len() {
                continue;
            }
            let mut parameters = Vec::new();
            let fits = parts.iter().zip(&given).all(|(part, value)| {
                match part.strip_prefix('{').and_then(|p| p.strip_suffix('}')) {
                    Some(name) => {
                        parameters.push((name.to_owned(), (*value).to_owned()));
                        true
                    }
                    None => part == value,
                }
            });
            if fits
                && best
                    .as_ref()
                    .is_none_or(|(_, other)| parameters.len() < other.len())
            {
                best = Some((item, parameters));
            }
        }
        best
    }

    fn check_path(&self, name: &str, item: &Value, parameters: &[(String, String)]) {
        for (parameter, value) in parameters {
            let schema = item["parameters"]
                .as_array()
                .into_iter()
                .flatten()
                .find(|p| p["name"] == parameter.as_str())
                .map(|p| &p["schema"]);
            match schema {
                Some(schema) => self.check(
                    &format!("{name}: {parameter}"),
                    schema,
                    &typed(value),
                    false,
                ),
                None => self.violated(format!("{name}: {parameter} is not described")),
            }
        }
    }

    fn check_query(&self, name: &str, operation: &Value, query: &str) {
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (parameter, value) = pair.split_once('=').unwrap_or((pair, ""));
            match parameter_of(operation, "query", parameter) {
                Some(schema) => self.check(
                    &format!("{name}: {parameter}"),
                    schema,
                    &typed(value),
                    false,
                ),
                None => self.violated(format!("{name}: {parameter} is not described")),
            }
        }
    }

    /// Checks that a filter names only fields of the listed objects that the description marks as filterable.
    fn check_filter(&self, name: &str, operation: &Value, request: &Request<Bytes>) {
        let Some(header) = request.headers().get("x-filter") else {
            return;
        };
        let filter: Value = match header.to_str().map(serde_json::from_str) {
            Ok(Ok(filter)) => filter,
            other => return self.violated(format!("{name}: X-Filter {other:?} is not JSON")),
        };
        if let Some(schema) = parameter_of(operation, "header", "X-Filter") {
            // The described schema separates operators and fields by `oneOf`. Here it only has to be an object.
            assert!(schema["oneOf"].is_array());
        }
        let item = &operation["responses"]["200"]["content"]["application/json"]["schema"]["properties"]
            ["data"];
        self.check_condition(name, &item["items"]["properties"], &filter);
    }

    fn check_condition(&self, name: &str, fields: &Value, filter: &Value) {
        let Some(conditions) = filter.as_object() else {
            return self.violated(format!("{name}: {filter} is not an object"));
        };
        for (field, value) in conditions {
            match field.as_str() {
                "+and" | "+or" => {
                    for part in value.as_array().into_iter().flatten() {
                        self.check_condition(name, fields, part);
                    }
                }
                "+order_by" => {
                    self.check_filterable(name, fields, value.as_str().unwrap_or_default())
                }
                operator if operator.starts_with('+') => {
                    if !OPERATORS.contains(&operator) {
                        self.violated(format!("{name}: {operator} is no operator"));
                    }
                }
                field => self.check_filterable(name, fields, field),
            }
        }
    }

    fn check_filterable(&self, name: &str, fields: &Value, field: &str) {
        let mut at = fields;
        let mut described = &Value::Null;
        for step in field.split('.') {
            described = &at[step];
            at = &described["properties"];
        }
        let text = described["description"].as_str().unwrap_or_default();
        if !text.contains("__Filterable__") {
            self.violated(format!("{name}: {field} is not marked as filterable"));
        }
    }

    fn check_body(&self, name: &str, operation: &Value, body: &Bytes) {
        let described = operation.get("requestBody");
        let schema = described.map(|b| &b["content"]["application/json"]["schema"]);
        match (schema, body.is_empty()) {
            (None, true) => {}
            (None, false) => self.violated(format!("{name}: a body that is not described")),
            (Some(_), true) => {
                if described.is_some_and(|b| b["required"] == true) {
                    self.violated(format!("{name}: no body"));
                }
            }
            (Some(schema), false) => match serde_json::from_slice(body) {
                Ok(body) => self.check(&format!("{name}: body"), schema, &body, false),
                Err(error) => self.violated(format!("{name}: body: {error}")),
            },
        }
    }

    /// Checks an answer in the API's own form. Pages of proxies and truncated bodies are faults and not checked.
    fn answer(&self, operation: &Value, answer: &Response<Bytes>) {
        let kind = answer
            .headers()
            .get("content-type")
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default();
        let id = operation["operationId"].as_str().unwrap_or_default();
        let status = answer.status();
        if !kind.starts_with("application/json") {
            return;
        }
        let which = if status.is_success() {
            status.as_str()
        } else {
            "default"
        };
        let schema = &operation["responses"][which]["content"]["application/json"]["schema"];
        if schema.is_null() {
            return self.violated(format!("{id}: answer {status} is not described"));
        }
        match serde_json::from_slice(answer.body()) {
            Ok(body) => self.check(&format!("{id}: answer {status}"), schema, &body, true),
            Err(_) if !status.is_success() => {}
            Err(error) => self.violated(format!("{id}: answer {status}: {error}")),
        }
    }

    fn check(&self, name: &str, schema: &Value, value: &Value, relaxed: bool) {
        for error in validator(schema, relaxed).iter_errors(value) {
            self.violated(format!("{name}: {error} at {}", error.instance_path()));
        }
    }
}

/// Converts a value of a path or query into its JSON type.
fn typed(text: &str) -> Value {
    text.parse::<u64>()
        .map_or_else(|_| Value::from(text), Value::from)
}

fn parameter_of<'a>(operation: &'a Value, place: &str, name: &str) -> Option<&'a Value> {
    let parameters = operation["parameters"].as_array()?;
    parameters
        .iter()
        .find(|p| p["in"] == place && p["name"] == name)
        .map(|p| &p["schema"])
}

fn validator(schema: &Value, relaxed: bool) -> Validator {
    let schema = translate(schema, relaxed, "");
    jsonschema::options()
        .with_draft(Draft::Draft4)
        .build(&schema)
        .expect("a schema")
}

/// Converts an OpenAPI 3.0 schema into JSON Schema: `nullable` becomes a type. `relaxed`: as described in the fixture's README.
fn translate(schema: &Value, relaxed: bool, name: &str) -> Value {
    match schema {
        Value::Object(fields) => {
            let mut out = Map::new();
            for (key, value) in fields {
                match key.as_str() {
                    "description" | "example" | "nullable" | "readOnly" | "deprecated"
                        if !value.is_object() => {}
                    "additionalProperties" | "format" if relaxed => {}
                    _ => {
                        out.insert(key.clone(), translate(value, relaxed, key));
                    }
                }
            }
            let null = fields.get("nullable") == Some(&Value::Bool(true))
                || (relaxed && name == "last_successful");
            if null {
                allow(&mut out, "null");
            }
            if relaxed && name == "secondary_entity" {
                out["properties"]["id"]["type"] = serde_json::json!(["string", "integer"]);
            }
            Value::Object(out)
        }
        Value::Array(items) => items
            .iter()
            .map(|item| translate(item, relaxed, ""))
            .collect(),
        other => other.clone(),
    }
}

fn allow(schema: &mut Map<String, Value>, kind: &str) {
    if let Some(of) = schema
        .get("type")
        .and_then(Value::as_str)
        .map(str::to_owned)
    {
        schema.insert("type".to_owned(), serde_json::json!([of, kind]));
    } else if schema.contains_key("allOf") {
        let all = schema.remove("allOf");
        schema.insert(
            "anyOf".to_owned(),
            serde_json::json!([{ "allOf": all }, { "type": kind }]),
        );
    }
    if let Some(words) = schema.get_mut("enum").and_then(Value::as_array_mut) {
        words.push(Value::Null);
    }
}

/// Makes a request as a client of the API does.
pub fn request(
    method: Method,
    path: &str,
    filter: Option<&Value>,
    body: Option<&Value>,
) -> Request<Bytes> {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("http://127.0.0.1/v4{path}"))
        .header("authorization", "Bearer token");
    if let Some(filter) = filter {
        request = request.header("x-filter", filter.to_string());
    }
    if body.is_some() {
        request = request.header("content-type", "application/json");
    }
    request
        .body(body.map_or_else(Bytes::new, |b| Bytes::from(b.to_string())))
        .expect("a good request")
}
