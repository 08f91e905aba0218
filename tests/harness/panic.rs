//! What a panic that was caught says.

use std::any::Any;

/// All of its text.
pub fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic").to_owned()
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    #[test]
    fn a_panic_says_what_it_was_given() {
        let said = |work: fn()| words(&*catch_unwind(work).expect_err("it panics"));
        assert_eq!(said(|| panic!("plain")), "plain");
        assert_eq!(said(|| panic!("{}\nof two", "lines")), "lines\nof two");
        assert_eq!(said(|| std::panic::panic_any(7)), "a panic");
    }
}
