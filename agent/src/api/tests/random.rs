//! Objects made at random from the schema, and from what lies just outside of it: the code and the API server have to say
//! the same of every one of them, and nothing may panic.

use fastrand::Rng;
use proptest::prelude::*;

use super::{api_server::ApiServer, *};

/// Makes values that a schema allows, and some that it does not.
struct Maker<'r> {
    rng: &'r mut Rng,
    /// Of a hundred values, how many are not what the schema asks for.
    wrong_percent: u32,
}

impl Maker<'_> {
    fn chance(&mut self, percent: u32) -> bool {
        self.rng.u32(0..100) < percent
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.rng.usize(0..from.len())].clone()
    }

    fn value(&mut self, schema: &Value) -> Value {
        if self.chance(self.wrong_percent) {
            return self.pick(&[
                json!(null),
                json!(true),
                json!(-1),
                json!(1e300),
                json!("?"),
                json!([]),
                json!({"a": 1}),
            ]);
        }
        match schema["type"].as_str().expect("a type") {
            "object" => self.object(schema),
            "array" => {
                let most = schema["maxItems"].as_u64().unwrap_or(4).min(4) as usize;
                let items = self.rng.usize(0..=most);
                (0..items).map(|_| self.value(&schema["items"])).collect()
            }
            "string" => self.text(schema),
            "boolean" => self.pick(&[json!(true), json!(false)]),
            kind => self.number(schema, kind == "integer"),
        }
    }

    fn object(&mut self, schema: &Value) -> Value {
        let mut object = json!({});
        let Some(properties) = schema["properties"].as_object() else {
            let (key, value) = (self.pick(&["app", "a b"]), self.value(&schema["additionalProperties"]));
            object[key] = value;
            return object;
        };
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        for (name, schema) in properties {
            let likely = if required.contains(&json!(name)) { 98 } else { 40 };
            if self.chance(likely) {
                object[name.as_str()] = self.value(schema);
            }
        }
        if self.chance(self.wrong_percent) {
            object["unheardOf"] = json!(1);
        }
        object
    }

    fn text(&mut self, schema: &Value) -> Value {
        if let Some(values) = schema["enum"].as_array() {
            return self.pick(values);
        }
        let pattern = schema["pattern"].as_str().unwrap_or_default();
        let pool: &[&str] = if pattern.contains("ms") {
            &["0s", "1ms", "25ms", "100ms", "1s", "10s", "30s", "1m", "5m", "1h", "24h", "25h", "1m30s"]
        } else if pattern.starts_with("^/") {
            &["/", "/a", "/b/*", "/*"]
        } else {
            &[
                "a",
                "b",
                "gray",
                "/a",
                "x-user",
                "content-length",
                "Baggage",
                "a b",
                "(",
                "^[a-z]+$",
                "GET",
                "a.b/c",
                "",
            ]
        };
        self.pick(pool).into()
    }

    fn number(&mut self, schema: &Value, whole: bool) -> Value {
        let min = schema["minimum"].as_f64().expect("numbers have bounds");
        let max = schema["maximum"].as_f64().expect("numbers have bounds");
        let mut number = self.pick(&[min, min + 1.0, f64::midpoint(min, max), max]);
        if self.chance(self.wrong_percent) {
            number = self.pick(&[min - 1.0, max + 1.0]);
        }
        if whole { (number as i64).into() } else { number.into() }
    }
}

fn same_verdict<K: Kind>(server: &ApiServer, kind: &str, rng: &mut Rng, wrong_percent: u32) -> bool {
    let spec = crds::schema_of(&definition::<K>(), "spec");
    let spec = Maker { rng, wrong_percent }.value(&spec);
    let object = object(kind, json!({}), &spec);
    let object = if spec.is_object() { object } else { json!({"metadata": {"name": "a"}, "spec": spec}) };
    let (errors, refusals) = (errors::<K>(&object), server.refusals(&object));
    let known: Vec<_> = errors.iter().filter(|error| !only_sluice_knows(error)).collect();
    assert_eq!(
        known.is_empty(),
        refusals.is_empty(),
        "{errors:#?}\nbut the API server: {refusals:#?}\n{object:#}"
    );
    errors.is_empty()
}

/// What the schema cannot say.
fn only_sluice_knows(error: &str) -> bool {
    error.contains("say one percentage")
        || error.contains("is another namespace")
        || error.contains("Labels: ") && error.contains("is no label key")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn code_and_api_server_agree(seed in any::<u64>(), wrong_percent in 0..4_u32) {
        let (policies, lanes) = (ApiServer::of::<TrafficPolicy>(), ApiServer::of::<TrafficLane>());
        let mut rng = Rng::with_seed(seed);
        for _ in 0..4 {
            same_verdict::<TrafficPolicy>(&policies, "TrafficPolicy", &mut rng, wrong_percent);
            same_verdict::<TrafficLane>(&lanes, "TrafficLane", &mut rng, wrong_percent);
        }
    }
}
