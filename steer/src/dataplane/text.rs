//! Text in fields of fixed size, as maps keep names.

/// The text, cut at a character if need be; at least one zero ends it.
pub(super) fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [0; N];
    let end = text.floor_char_boundary(N - 1);
    field[..end].copy_from_slice(&text.as_bytes()[..end]);
    field
}

/// What stands before the first zero; what is not UTF-8 is replaced.
pub(super) fn unpadded(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(field.get(..end).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn long_names_are_cut_between_characters() {
        let field: [u8; 4] = padded("aäö");
        assert_eq!(&field, b"a\xc3\xa4\0");
        let field: [u8; 4] = padded("aaäö");
        assert_eq!(&field, b"aa\0\0");
    }

    #[rstest]
    #[case(b"web\0\0\0", "web")]
    #[case(b"web", "web")]
    #[case(b"\0web", "")]
    #[case(b"w\xff\0", "w\u{fffd}")]
    fn text_ends_at_the_first_zero(#[case] field: &[u8], #[case] text: &str) {
        assert_eq!(unpadded(field), text);
    }
}
