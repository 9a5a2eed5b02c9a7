//! Kubernetes quantities: `500m`, `1.5`, `64Mi`, `2G`, `1e3`.

use std::fmt;
use std::str::FromStr;

use serde::de::{Deserialize, Deserializer, Error as _, Visitor};

/// Most digits of a quantity; 10^18 thousandths still fit an i128 with every suffix.
const DIGITS_MAX: usize = 18;
/// The largest decimal exponent, as that of the suffix E.
const EXPONENT_MAX: i32 = 18;

/// An amount, never negative, in thousandths of its unit and rounded up, as Kubernetes rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Quantity {
    milli: i128,
}

/// A text that is not a quantity.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a quantity such as 500m, 1.5, 64Mi or 2G")]
pub(crate) struct QuantityError(String);

impl Quantity {
    /// In thousandths: of CPUs, for instance. Saturates.
    pub(crate) fn milli(self) -> i64 {
        i64::try_from(self.milli).unwrap_or(i64::MAX)
    }

    /// In whole units, rounded up: bytes, for instance. Saturates.
    pub(crate) fn units(self) -> i64 {
        i64::try_from(div_up(self.milli, 1000)).unwrap_or(i64::MAX)
    }
}

/// `dividend` is not negative.
fn div_up(dividend: i128, divisor: i128) -> i128 {
    (dividend + divisor - 1) / divisor
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        parse(text.trim()).ok_or_else(|| QuantityError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Quantity> {
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || digits.len() > DIGITS_MAX || fraction.contains('.') {
        return None;
    }
    let mantissa: i128 = digits.parse().ok()?;
    let (factor, exponent) = scale(suffix)?;
    // mantissa × 10^-len(fraction) × factor × 10^exponent × 1000, in one fraction.
    let exponent = exponent + 3;
    let multiplied =
        mantissa.checked_mul(factor)?.checked_mul(10i128.checked_pow(exponent.max(0).unsigned_abs())?)?;
    let divisor_digits = u32::try_from(fraction.len()).ok()? + exponent.min(0).unsigned_abs();
    Some(Quantity { milli: div_up(multiplied, 10i128.checked_pow(divisor_digits)?) })
}

/// A binary factor and a decimal exponent.
fn scale(suffix: &str) -> Option<(i128, i32)> {
    let binary = |power: u32| Some((1i128 << (10 * power), 0));
    let decimal = |exponent| Some((1, exponent));
    match suffix {
        "" => decimal(0),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            (exponent.abs() <= EXPONENT_MAX).then_some((1, exponent))
        }
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Quantity;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a quantity such as 500m, 1.5, 64Mi or 2G")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Quantity, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Quantity, E> {
                Ok(Quantity { milli: i128::from(number) * 1000 })
            }
            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Quantity, E> {
                match u64::try_from(number) {
                    Ok(number) => self.visit_u64(number),
                    Err(_negative) => Err(E::custom("a quantity is not negative")),
                }
            }
            fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Quantity, E> {
                number.to_string().parse().map_err(E::custom)
            }
        }
        from.deserialize_any(Text).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_and_rounded_up() {
        let table = [
            ("0", 0, 0),
            ("1", 1000, 1),
            ("500m", 500, 1),
            ("1.5", 1500, 2),
            (".5", 500, 1),
            ("2.", 2000, 2),
            ("100n", 1, 1),
            ("1500u", 2, 1),
            ("64Mi", 64 * 1024 * 1024 * 1000, 64 * 1024 * 1024),
            ("1.5Gi", 1536 * 1024 * 1024 * 1000, 1536 * 1024 * 1024),
            ("2G", 2_000_000_000_000, 2_000_000_000),
            ("1e3", 1_000_000, 1000),
            ("1E3", 1_000_000, 1000),
            ("12e-1", 1200, 2),
            ("+3k", 3_000_000, 3000),
            ("2E", i64::MAX, 2_000_000_000_000_000_000),
            ("8Ei", i64::MAX, i64::MAX),
        ];
        for (text, milli, units) in table {
            let quantity: Quantity = text.parse().unwrap();
            assert_eq!((quantity.milli(), quantity.units()), (milli, units), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in
            ["", "-1", "m", "1.2.3", "1 Gi", "1gi", "1e", "1e99", "0x10", "1234567890123456789", "NaN", "."]
        {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
    }
}
