//! Whole numbers on the command line: what is wrong with one is said in words, and with what is allowed.

use std::ops::RangeInclusive;

/// Reads a whole number of this range.
pub(crate) fn whole<T: TryFrom<u64>>(
    range: RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static {
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.and_then(|number: u64| T::try_from(number).ok()).ok_or_else(|| {
            let (least, most) = (range.start(), range.end());
            format!("allowed are whole numbers from {least} to {most}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_or_not_in_the_range_is_told_what_is() {
        let workers = whole::<u16>(1..=64);
        assert_eq!(workers("64"), Ok(64));
        for wrong in ["", "0", "65", "-1", "two", "1.5", "70000", "99999999999999999999"] {
            assert_eq!(workers(wrong), Err("allowed are whole numbers from 1 to 64".to_owned()), "{wrong:?}");
        }
        // A range may go beyond the type.
        assert!(whole::<u8>(0..=1000)("256").is_err());
    }
}
