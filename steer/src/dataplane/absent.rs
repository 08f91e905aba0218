//! An entry that is not there is no error: how aya tells it.

use std::io::ErrorKind;

use aya::maps::MapError;
use aya::sys::SyscallError;

/// The value that was looked up, if it is there; it may have gone since its key was read.
pub(super) fn found<V>(value: Result<V, MapError>) -> Result<Option<V>, MapError> {
    match value {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether there was something to remove. Of a removal, aya passes on what the kernel says.
pub(super) fn removed(result: Result<(), MapError>) -> Result<bool, MapError> {
    match result {
        Ok(()) => Ok(true),
        Err(MapError::SyscallError(SyscallError { io_error, .. })) if io_error.kind() == ErrorKind::NotFound => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn errno(number: i32) -> MapError {
        let io_error = io::Error::from_raw_os_error(number);
        MapError::SyscallError(SyscallError { call: "bpf_map_delete_elem", io_error })
    }

    #[test]
    fn what_is_not_there_is_no_error_and_anything_else_is() {
        assert_eq!(found(Ok(7)).unwrap(), Some(7));
        assert_eq!(found::<u32>(Err(MapError::KeyNotFound)).unwrap(), None);
        assert!(found::<u32>(Err(errno(nix::libc::EPERM))).is_err());
        assert!(removed(Ok(())).unwrap());
        assert!(!removed(Err(errno(nix::libc::ENOENT))).unwrap());
        assert!(removed(Err(errno(nix::libc::EPERM))).is_err());
    }
}
