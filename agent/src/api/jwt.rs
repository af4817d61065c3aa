//! Tokens that an `AccessPolicy` asks for: who issues them, whose keys they are signed with, and what they have to say.

use std::{collections::HashMap, sync::Arc};

use http::HeaderName;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    field::{At, quoted, refuse_repeated},
    matching::{check_header_name, each},
    span::{self, Span},
    traffic_policy::unique_names,
};
use crate::govern::{
    access, headers,
    jwt::{
        self, ClaimPath, ClaimTest, Entry, Holder, Jwt, Keys, Location, Place, Provider, Slot, Source,
        keys::KeysError, source,
    },
};

/// How far clocks may be apart, unless the policy says otherwise, in milliseconds.
const SKEW: u64 = 60_000;

/// JSON Web Tokens that count, and where requests have them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new(
        "!has(self.forwardToken) || self.forwardToken || !has(self.tokenFrom) || self.tokenFrom.all(one, has(one.header))"
    ).message("only a token in a header can be removed").field_path(".forwardToken")
)]
pub struct JwtPolicy {
    /// Who issues tokens. The claim iss of a token says which of them it is from.
    #[schemars(
        length(min = 1, max = 8),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
    )]
    #[x_kube(
        validation = Rule::new("self.all(one, self.exists_one(other, other.issuer == one.issuer))")
            .message("two providers have the same issuer")
    )]
    pub providers: Vec<JwtProvider>,
    /// Where a request has its token; the first place that has one counts. Authorization: Bearer if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub token_from: Vec<TokenPlace>,
    /// Whether the application gets a token that was verified. If false, the header that had it is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = true))]
    pub forward_token: Option<bool>,
}

const INLINE_IS_KNOWN: &str =
    "onNoKeys: has no effect with jwks.inline, for keys that the policy has are always known";
const ONE_SOURCE: &str = "exactly one of inline, uri, configMap and secret is needed";
/// The entry of an object, unless the policy says otherwise.
const ENTRY: &str = "jwks.json";
const NOT_FETCHED: &str = "cacheDuration: has no effect without uri";

/// Who issues tokens, and what one of them must be.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!has(self.onNoKeys) || !has(self.jwks.inline)").message(INLINE_IS_KNOWN))]
pub struct JwtProvider {
    /// Name of the provider, for rules.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// What the claim iss of its tokens is, character by character.
    #[schemars(length(min = 1, max = 1024))]
    pub issuer: String,
    /// What the claim aud of its tokens must have at least one of: the names by which the issuer knows the called service.
    #[schemars(
        length(min = 1, max = 16),
        inner(length(min = 1, max = 1024)),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub audiences: Vec<String>,
    /// The public keys of the issuer.
    pub jwks: Jwks,
    /// Unless the keys are inline, what becomes of requests that have a token of this issuer for as long as an agent has not read its
    /// keys even once: after a start of the agent until they are read, and where they cannot be. Deny if not set: no condition on its tokens
    /// holds, and they get 401. Allow: those of rules that allow hold for a token with an algorithm that is supported, whatever else it says
    /// and whoever has made it. Once keys were read this has no effect: the last ones stay in use.
    // Without a default in the schema: the API server would put it into each policy, and then refuse those with inline keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_no_keys: Option<OnNoKeys>,
    /// Headers of the request that the application gets claims of a verified token in. What clients send under these names, also
    /// with underscores for dashes, is always removed, whether there is a token or not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["header"])
    )]
    pub claims_to_headers: Vec<ClaimToHeader>,
    /// How far the clocks of the issuer and of the node may be apart, for the claims exp and nbf.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = "1m"))]
    pub clock_skew: Option<Span<0, 300_000>>,
}

/// Public keys: a JSON Web Key Set (RFC 7517). RSA keys of 2048 to 4096 bits, P-256, P-384 and Ed25519 are used; keys of other
/// kinds, or for another use than sig, are passed over. For a token without a kid at most four keys that fit its algorithm are tried,
/// of P-384 one: where there are more, each needs a kid.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new(
        "(has(self.inline) ? 1 : 0) + (has(self.uri) ? 1 : 0) + (has(self.configMap) ? 1 : 0) + (has(self.secret) ? 1 : 0) == 1"
    ).message(ONE_SOURCE),
    validation = Rule::new("!has(self.cacheDuration) || has(self.uri)").message(NOT_FETCHED)
)]
pub struct Jwks {
    /// The set itself, as JSON. It holds public keys only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65536))]
    pub inline: Option<String>,
    /// Where each agent fetches the set, over HTTPS, in the background: no request waits for it. The operator has to allow the host
    /// (setting --jwks-hosts of the agents). Redirects are not followed. If it cannot be fetched, the last keys stay in use. A token
    /// with an unknown key has the set fetched again, at most every 30s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 2048),
        regex(
            pattern = r"^https://([A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?([/?][-A-Za-z0-9._~!$&'()*+,;=:@/?%]*)?$"
        )
    )]
    pub uri: Option<String>,
    /// With uri, how often the set is fetched: 5m if not set. A key that the issuer takes out of the set is used for so long.
    // Without a default in the schema, for the same reason as onNoKeys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_duration: Option<Span<30_000, 3_600_000>>,
    /// A ConfigMap in the policy's namespace that has the set. The agents read it through the API server and follow its changes, which
    /// needs a permission of its own (deploy/overlays/token-keys). If it cannot be read, or is no set, the last keys stay in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<KeysObject>,
    /// The same with a Secret (deploy/overlays/token-keys-secrets). Public keys are no secret: a ConfigMap is the normal place, and the
    /// permission lets agents read Secrets. A set with private or symmetric keys is not taken from here either.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<KeysObject>,
}

/// An entry of an object in the policy's namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeysObject {
    /// Name of the object.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub name: String,
    /// Which entry of its data has the set. Its value may have 256 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._A-Za-z0-9]+$"), extend("default" = ENTRY))]
    pub key: Option<String>,
}

/// What becomes of tokens whose issuer's keys were never known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnNoKeys {
    #[default]
    Deny,
    Allow,
}

/// A header that gets the value of a claim.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClaimToHeader {
    /// Name of the header.
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^[A-Za-z0-9!#$%&'*+\-.^_`|~]+$"))]
    #[x_kube(validation = Rule::new(format!("!(self.lowerAscii() in {})", headers::meaningful_in_cel()))
        .message("this header has a meaning of its own"))]
    pub header: String,
    /// The names on the way to the claim, each as it is: sub alone, or realm_access and roles. Texts, booleans and integers of 64 bits
    /// become the value, lists of them with commas between; what is not printable ASCII is percent-encoded. Other numbers and objects
    /// become no header.
    #[schemars(length(min = 1, max = 8), inner(length(min = 1, max = 256)))]
    pub claim: Vec<String>,
}

/// A place in a request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(
    validation = Rule::new(
        "(has(self.header) ? 1 : 0) + (has(self.cookie) ? 1 : 0) + (has(self.queryParameter) ? 1 : 0) == 1"
    ).message("one of header, cookie and queryParameter is needed")
)]
pub struct TokenPlace {
    /// A header. A request with two tokens in it, or another line of it beside the token, has no valid one. What clients send under
    /// its name with underscores for dashes is always removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<TokenHeader>,
    /// Name of a cookie. A request with two of them has no valid token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^[A-Za-z0-9!#$%&'*+\-.^_`|~]+$"))]
    pub cookie: Option<String>,
    /// Name of a query parameter. A request with two of them has no valid token. Applications and other proxies write queries into
    /// their logs (Sluice does not): prefer a header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub query_parameter: Option<String>,
}

/// A header that has a token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenHeader {
    /// Name of the header.
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^[A-Za-z0-9!#$%&'*+\-.^_`|~]+$"))]
    pub name: String,
    /// What is before the token, in any case; values without it have no token. "Bearer " for Authorization and nothing for
    /// others, if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), regex(pattern = r"^[ -~]*$"))]
    pub prefix: Option<String>,
}

/// A condition on the token of a request: it is valid, and both parts match.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenMatch {
    /// The provider that the token is from; any of the policy if not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub provider: Option<String>,
    /// Conditions on its claims; all must match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub claims: Vec<ClaimMatch>,
}

/// A condition on a claim.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClaimMatch {
    /// The names on the way to the claim, each as it is: scope alone, or realm_access and roles.
    #[schemars(length(min = 1, max = 8), inner(length(min = 1, max = 256)))]
    pub claim: Vec<String>,
    /// Values, of which the claim must be one; of a list an item, of scope and scp a word. Booleans and integers of 64 bits are
    /// compared as they are written in JSON; other numbers and objects are no values.
    #[schemars(
        length(min = 1, max = 32),
        inner(length(min = 1, max = 1024)),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub values: Vec<String>,
}

impl JwtPolicy {
    pub(super) fn check(&self, at: &At<'_>) -> Jwt {
        let providers = at.field("providers");
        unique_names(self.providers.iter().map(|provider| &*provider.name), &providers);
        let mut issuers = HashMap::new();
        for (i, provider) in self.providers.iter().enumerate() {
            if let Some(earlier) = issuers.insert(&*provider.issuer, i) {
                providers.index(i).field("issuer").refuse(format!(
                    "{} is the issuer of {providers}[{earlier}] already: two providers have the same issuer",
                    quoted(&provider.issuer)
                ));
            }
        }
        self.refuse_look_alikes(at);
        let forward = self.forward_token.unwrap_or(true);
        if !forward && self.token_from.iter().any(|place| place.header.is_none()) {
            at.field("forwardToken")
                .refuse("false is not allowed here: only a token in a header can be removed");
        }
        let bearer = || Place::Header { name: http::header::AUTHORIZATION, prefix: "Bearer ".into() };
        let mut places = each(&self.token_from, &at.field("tokenFrom"), TokenPlace::check);
        if self.token_from.is_empty() {
            places.push(bearer());
        }
        Jwt {
            providers: each(&self.providers, &providers, |one, at| one.check(at).map(Arc::new)),
            places,
            forward,
            number: jwt::Number::default(),
        }
    }
}

impl JwtPolicy {
    /// Many servers make no difference between a dash and an underscore in the name of a header (CGI, WSGI, PHP): of two that differ in
    /// nothing else the application may read the one that was not verified.
    fn refuse_look_alikes(&self, at: &At<'_>) {
        let mut known: HashMap<String, (String, String)> = HashMap::new();
        let mut look = |name: &str, at: &At<'_>| {
            let name = name.to_ascii_lowercase();
            let (first, there) =
                known.entry(name.replace('_', "-")).or_insert_with(|| (name.clone(), at.to_string()));
            if *first != name {
                at.refuse(format!(
                    "{} and {} ({there}) are one header to servers that make no difference between - and _: choose another name",
                    quoted(&name),
                    quoted(first)
                ));
            }
        };
        let places = at.field("tokenFrom");
        for (i, place) in self.token_from.iter().enumerate() {
            if let Some(header) = &place.header {
                look(&header.name, &places.index(i).field("header").field("name"));
            }
        }
        let providers = at.field("providers");
        for (i, provider) in self.providers.iter().enumerate() {
            let provider_at = providers.index(i);
            let claims = provider_at.field("claimsToHeaders");
            for (i, claim) in provider.claims_to_headers.iter().enumerate() {
                look(&claim.header, &claims.index(i).field("header"));
            }
        }
    }
}

impl JwtProvider {
    fn check(&self, at: &At<'_>) -> Option<Provider> {
        refuse_repeated(&self.audiences, &at.field("audiences"));
        let to_headers = at.field("claimsToHeaders");
        let mut names = HashMap::new();
        let claims = each(&self.claims_to_headers, &to_headers, ClaimToHeader::check);
        for (i, (name, _)) in claims.iter().enumerate() {
            if let Some(earlier) = names.insert(name.clone(), i) {
                let message = format!("{} is set by {to_headers}[{earlier}] already", quoted(name.as_str()));
                to_headers.index(i).field("header").refuse(message);
            }
        }
        let skew = self
            .clock_skew
            .clone()
            .unwrap_or_else(|| Span(span::text(std::time::Duration::from_millis(SKEW))));
        let skew = skew.check(&at.field("clockSkew")).as_secs();
        if self.on_no_keys.is_some() && self.jwks.inline.is_some() {
            at.refuse(INLINE_IS_KNOWN);
        }
        let source = self.jwks.check(&at.field("jwks"))?;
        let keys = match &source {
            Source::Inline(keys) => Slot::of(keys.clone()),
            Source::Remote { .. } | Source::Entry(_) => Slot::default(),
        };
        Some(Provider {
            name: self.name.as_str().into(),
            issuer: self.issuer.as_str().into(),
            audiences: self.audiences.iter().map(|one| one.as_str().into()).collect(),
            skew,
            source,
            on_no_keys: match self.on_no_keys.unwrap_or_default() {
                OnNoKeys::Deny => jwt::OnNoKeys::Deny,
                OnNoKeys::Allow => jwt::OnNoKeys::Allow,
            },
            to_headers: claims,
            keys,
        })
    }
}

impl Jwks {
    fn check(&self, at: &At<'_>) -> Option<Source> {
        let every = self.cache_duration.as_ref().map(|every| every.check(&at.field("cacheDuration")));
        if every.is_some() && self.uri.is_none() {
            at.refuse(NOT_FETCHED);
        }
        match (&self.inline, &self.uri, &self.config_map, &self.secret) {
            (Some(inline), None, None, None) => {
                let keys = inline_keys(inline, &at.field("inline"))?;
                Some(Source::Inline(Arc::new(keys)))
            }
            (None, None, Some(object), None) => Some(object.entry(Holder::ConfigMap)),
            (None, None, None, Some(object)) => Some(object.entry(Holder::Secret)),
            (None, Some(uri), None, None) => match uri.parse::<Location>() {
                Ok(location) => Some(Source::Remote { location, every: every.unwrap_or(source::EVERY) }),
                Err(error) => {
                    at.field("uri").refuse(format!("{}: {error}", quoted(uri)));
                    None
                }
            },
            _ => {
                at.refuse(ONE_SOURCE);
                None
            }
        }
    }
}

impl KeysObject {
    fn entry(&self, of: Holder) -> Source {
        let key = self.key.as_deref().unwrap_or(ENTRY);
        Source::Entry(Entry { of, name: self.name.as_str().into(), key: key.into() })
    }
}

fn inline_keys(text: &str, at: &At<'_>) -> Option<Keys> {
    if let Some((index, name)) = Keys::private(text.as_bytes()) {
        at.refuse(format!(
            "keys[{index}] has {name}, which is secret: anybody who may read the policy could sign tokens with it. Take the key out of \
             use, and write public keys only"
        ));
        return None;
    }
    match Keys::read(text.as_bytes()) {
        Ok(keys) => Some(keys),
        Err(error) => {
            let allowed = match error {
                KeysError::Json(_) | KeysError::Shape => "; as in {\"keys\": [{\"kty\": \"RSA\", ...}]}",
                _ => "",
            };
            at.refuse(format!("no set of keys: {error}{allowed}"));
            None
        }
    }
}

impl ClaimToHeader {
    fn check(&self, at: &At<'_>) -> Option<(HeaderName, ClaimPath)> {
        let name = check_header_name(&self.header, &at.field("header"))?;
        if !headers::may_carry_a_tag(name.as_str().as_bytes()) {
            at.field("header")
                .refuse(format!("{}: this header has a meaning of its own", quoted(&self.header)));
            return None;
        }
        Some((name, path(&self.claim)))
    }
}

impl TokenPlace {
    fn check(&self, at: &At<'_>) -> Option<Place> {
        match (&self.header, &self.cookie, &self.query_parameter) {
            (Some(header), None, None) => header.check(&at.field("header")),
            (None, Some(cookie), None) => Some(Place::Cookie(cookie.as_str().into())),
            (None, None, Some(parameter)) => Some(Place::QueryParameter(parameter.as_str().into())),
            _ => {
                at.refuse("one of header, cookie and queryParameter is needed");
                None
            }
        }
    }
}

impl TokenHeader {
    fn check(&self, at: &At<'_>) -> Option<Place> {
        let name = check_header_name(&self.name, &at.field("name"))?;
        let usual = if name == http::header::AUTHORIZATION { "Bearer " } else { "" };
        Some(Place::Header { name, prefix: self.prefix.as_deref().unwrap_or(usual).into() })
    }
}

impl TokenMatch {
    pub(super) fn check(&self, at: &At<'_>) -> access::TokenTest {
        let claims = each(&self.claims, &at.field("claims"), |one, at| {
            refuse_repeated(&one.values, &at.field("values"));
            let values = one.values.iter().map(|value| value.as_str().into()).collect();
            Some(ClaimTest { path: path(&one.claim), values })
        });
        access::TokenTest { provider: self.provider.as_deref().map(Into::into), claims }
    }

    /// Refuses a condition on tokens where no token counts, or none of its provider.
    pub(super) fn check_provider(&self, jwt: Option<&JwtPolicy>, at: &At<'_>) {
        let Some(jwt) = jwt else {
            return at.refuse("spec.jwt is not set, so no token is valid: name who issues them there");
        };
        let Some(name) = &self.provider else { return };
        if !jwt.providers.iter().any(|provider| provider.name == *name) {
            let known: Vec<_> = jwt.providers.iter().map(|provider| quoted(&provider.name)).collect();
            let known = known.join(", ");
            at.field("provider")
                .refuse(format!("{} is none of spec.jwt.providers: these are {known}", quoted(name)));
        }
    }
}

fn path(names: &[String]) -> ClaimPath {
    ClaimPath(names.iter().map(|name| name.as_str().into()).collect())
}
