//! Lines and file descriptors over a Unix socket.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// The most descriptors in one message: the kernel's own limit is 253.
pub(super) const MOST_FDS: usize = 100;

const SPACE: usize = rustix::cmsg_space!(ScmRights(MOST_FDS));

/// Sends a part of `bytes` and, with its first byte, all of `fds`; how many bytes went.
///
/// # Errors
/// The socket's; then nothing was sent.
pub(super) fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if fds.len() > MOST_FDS || (!fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds))) {
        return Err(io::Error::other("too many file descriptors for one message"));
    }
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

/// Sends all of `bytes` on a socket that blocks, with `fds`.
///
/// # Errors
/// The socket's.
pub(super) fn send_all(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let (mut sent, mut fds) = (0, fds);
    while sent < bytes.len() {
        match send(&socket, &bytes[sent..], fds) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            done => sent += done?,
        }
        fds = &[];
    }
    Ok(())
}

/// Reads into `buffer`, and the descriptors that come with it, closed on exec.
///
/// # Errors
/// The socket's; more than [`MOST_FDS`] descriptors came at once, which are all closed again.
pub(super) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            got => break got?,
        }
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    // The space is a little more than needed.
    if got.flags.contains(ReturnFlags::CTRUNC) || fds.len() > MOST_FDS {
        return Err(io::Error::other("more file descriptors came than one message may have"));
    }
    Ok((got.bytes, fds))
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        os::unix::net::UnixStream,
    };

    use super::*;

    #[test]
    fn descriptors_arrive_with_their_bytes() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut reader, mut writer) = io::pipe().unwrap();
        send_all(&a, b"hello\n", &[writer.as_fd()]).unwrap();
        writer.write_all(b"through ").unwrap();
        drop(writer);
        let mut buffer = [0; 64];
        let (n, fds) = receive(&b, &mut buffer).unwrap();
        assert_eq!((&buffer[..n], fds.len()), (&b"hello\n"[..], 1));
        let mut other = std::fs::File::from(fds.into_iter().next().unwrap());
        other.write_all(b"the pipe").unwrap();
        drop(other);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through the pipe");
        drop(a);
        assert_eq!(receive(&b, &mut buffer).unwrap().0, 0, "the end");
    }

    #[test]
    fn too_many_are_refused_on_both_sides() {
        let (a, b) = UnixStream::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let many = vec![file.as_fd(); MOST_FDS + 1];
        assert!(send(&a, b"x", &many).is_err());
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS + 1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
        sendmsg(&a, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
        let error = receive(&b, &mut [0; 8]).unwrap_err();
        assert!(error.to_string().contains("more file descriptors"), "{error}");
    }
}
