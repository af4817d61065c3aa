//! Reading and editing one member of SkyWalking's `sw8-correlation` header, which its agents pass on beside `sw8`.
//!
//! `sw8-correlation: eC1tc2UtdGFn:Z3JheQ==` is a list of `key:value`, both in Base64, split by commas.
//! <https://skywalking.apache.org/docs/main/next/en/api/x-process-correlation-headers-v1/>

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

use super::members;

/// So many members an agent keeps unless it is told otherwise; those behind them it drops.
/// <https://skywalking.apache.org/docs/skywalking-java/next/en/setup/service-agent/java-agent/configurations/>, `correlation.element_max_number`
const MAX_MEMBERS: usize = 3;

/// Read with padding and without it, written with it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The values of the members with this key, decoded.
pub(super) fn values<'a>(line: &'a [u8], key: &'a str) -> impl Iterator<Item = Vec<u8>> {
    members(line).filter_map(move |member| value_of(member, key))
}

/// The value of a member, if its key is `key`.
pub(super) fn value_of(member: &[u8], key: &str) -> Option<Vec<u8>> {
    let mut parts = member.trim_ascii().split(|byte| *byte == b':');
    let (Some(found), Some(value), None) = (parts.next(), parts.next(), parts.next()) else { return None };
    // A key that is longer or shorter need not be decoded: three bytes make four.
    let is_near = found.len().abs_diff(key.len().div_ceil(3) * 4) <= 2;
    if !is_near || BASE64.decode(found).ok()? != key.as_bytes() {
        return None;
    }
    BASE64.decode(value).ok()
}

/// See [`super::Carrier::set`]. Members of others keep their place. There is no room past what an agent keeps.
pub(super) fn set<'a>(lines: impl Iterator<Item = &'a [u8]>, key: &str, tag: &[u8]) -> Option<Vec<u8>> {
    let ours = format!("{}:{}", BASE64.encode(key), BASE64.encode(tag));
    let mut list: Vec<&[u8]> = Vec::new();
    let (mut found, mut changed) = (false, false);
    for member in lines.flat_map(members).filter(|member| !member.trim_ascii().is_empty()) {
        match value_of(member, key) {
            Some(value) => {
                found = true;
                changed |= value != tag;
                list.push(ours.as_bytes());
            }
            None => list.push(member),
        }
    }
    if !found {
        if list.len() >= MAX_MEMBERS {
            return None;
        }
        list.push(ours.as_bytes());
    }
    (changed || !found).then(|| list.join(&b","[..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "x-mse-tag";
    /// `x-mse-tag:gray`
    const GRAY: &str = "eC1tc2UtdGFn:Z3JheQ==";
    /// `x-mse-tag:blue`
    const BLUE: &str = "eC1tc2UtdGFn:Ymx1ZQ==";

    fn read(line: &str) -> Vec<String> {
        values(line.as_bytes(), KEY).map(|value| String::from_utf8(value).unwrap()).collect()
    }

    fn edit(lines: &[&str]) -> Option<String> {
        let edited = set(lines.iter().map(|line| line.as_bytes()), KEY, b"gray")?;
        Some(String::from_utf8(edited).unwrap())
    }

    #[test]
    fn values_are_found_among_others() {
        assert_eq!(read(GRAY), ["gray"]);
        assert_eq!(read(&format!("YQ==:Yg==, {BLUE} ,{GRAY}")), ["blue", "gray"]);
        assert_eq!(read("eC1tc2UtdGFn:Z3JheQ"), ["gray"], "without padding");
        assert_eq!(read("eC1tc2UtdGFn:"), [""]);
        for none in [
            "",
            ":",
            "x-mse-tag:gray",
            "eC1tc2UtdGFn",
            "eC1tc2UtdGFn:Z3JheQ==:YQ==",
            "eC1tc2UtdGFo:YQ==",
            "eC1tc2UtdGFn:???",
        ] {
            assert!(read(none).is_empty(), "{none}");
        }
    }

    #[test]
    fn others_keep_their_place_and_none_is_dropped_for_ours() {
        assert_eq!(edit(&[]).unwrap(), GRAY);
        assert_eq!(edit(&["YQ==:Yg=="]).unwrap(), format!("YQ==:Yg==,{GRAY}"));
        assert_eq!(edit(&["YQ==:Yg==", BLUE, "Yw==:ZA=="]).unwrap(), format!("YQ==:Yg==,{GRAY},Yw==:ZA=="));
        assert_eq!(edit(&[GRAY]), None);
        assert_eq!(edit(&["YQ==:Yg==,Yg==:Yg==,Yw==:ZA=="]), None, "an agent keeps three");
        assert_eq!(
            edit(&[&format!("YQ==:Yg==,Yg==:Yg==,Yw==:ZA==,{BLUE}")]).unwrap().matches(GRAY).count(),
            1
        );
    }
}
