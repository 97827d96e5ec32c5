//! tbus for C: the functions of `include/tbus/tbus.h`, which says what each does.
//!
//! Each checks its arguments, finds the handle ([`table`]) and calls one of its halves, [`sending`] or [`receiving`], over
//! the Rust API. No panic leaves: whatever goes wrong in here becomes an error code.
//!
//! # Safety
//! All functions take pointers from C. Null is an error; any other is valid for what the header says. At most one thread at
//! a time is in the sending, and one in the receiving calls of a handle, as the header's thread rules say.

mod codes;
mod lines;
mod receiving;
mod sending;
mod table;
#[cfg(test)]
mod tests;

use bus::{Address, Hops, Ring, Template};
use codes::Code;
use lines::{ALL, FIRST};
use receiving::Receiving;
use sending::{Parts, Passed, Sending};
use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// `struct tbus_flux` of the header.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Flux {
    /// Messages sent into the channel since its rings were made.
    pub send_msgs: u64,
    /// Bytes that these took in the ring.
    pub send_bytes: u64,
    /// Messages received from it.
    pub recv_msgs: u64,
    /// Bytes that these took in the ring.
    pub recv_bytes: u64,
}

/// Runs a call; its value, or its error as C wants it.
#[inline(always)]
fn call(act: impl FnOnce() -> Result<c_int, Code>) -> c_int {
    match catch_unwind(AssertUnwindSafe(act)) {
        Ok(Ok(value)) => value,
        Ok(Err(code)) => code.as_int(),
        Err(_) => codes::INTERNAL.as_int(),
    }
}

/// What a pointer of the caller points to.
///
/// # Safety
/// It is null or valid, and nobody else's meanwhile.
#[inline(always)]
unsafe fn at<'a, T>(pointer: *mut T) -> Result<&'a mut T, Code> {
    // SAFETY: the caller's.
    unsafe { pointer.as_mut() }.ok_or(codes::BAD_ARGUMENT)
}

/// What src and dst of a call are. A caller may have both in one place, so there are no references to them.
///
/// # Safety
/// Each is null or valid.
#[inline(always)]
unsafe fn ends(src: *mut u32, dst: *mut u32) -> Result<(u32, u32), Code> {
    if src.is_null() || dst.is_null() {
        return Err(codes::BAD_ARGUMENT);
    }
    // SAFETY: not null, and the caller's word.
    Ok(unsafe { (src.read(), dst.read()) })
}

/// The caller's bytes.
///
/// # Safety
/// Null, or valid for `len` bytes.
#[inline(always)]
unsafe fn bytes<'a>(data: *const c_void, len: usize) -> Result<&'a [u8], Code> {
    if len > isize::MAX as usize {
        return Err(codes::MSG_TOO_LONG);
    }
    match (data.is_null(), len) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(codes::BAD_ARGUMENT),
        // SAFETY: not null, and by the caller's word valid for reading `len` bytes.
        (false, _) => Ok(unsafe { std::slice::from_raw_parts(data.cast(), len) }),
    }
}

/// The caller's text.
///
/// # Safety
/// Null, or a string that ends with a zero byte.
unsafe fn text<'a>(text: *const c_char, unreadable: Code) -> Result<&'a str, Code> {
    if text.is_null() {
        return Err(codes::BAD_ARGUMENT);
    }
    // SAFETY: the caller's.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|_| unreadable)
}

/// The sending half of a handle.
///
/// # Safety
/// No other thread is in a sending call of this handle: the thread rules.
#[inline(always)]
unsafe fn sending<'a>(handle: c_int) -> Result<&'a mut Sending, Code> {
    // SAFETY: a handle that is found is open until tbus_delete or tbus_fini, during which no call is under way, and
    // nobody else is in this half, both by the thread rules.
    Ok(unsafe { &mut *(*table::find(handle)?).sending.get() })
}

/// The receiving half of a handle.
///
/// # Safety
/// No other thread is in a receiving call of this handle: the thread rules.
#[inline(always)]
unsafe fn receiving<'a>(handle: c_int) -> Result<&'a mut Receiving, Code> {
    // SAFETY: as in `sending`.
    Ok(unsafe { &mut *(*table::find(handle)?).receiving.get() })
}

// ---- Attaching, handles, addresses ----------------------------------------------------------------------------

/// See the header.
///
/// # Safety
/// See the crate.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tbus_init_ex(key: *const c_char, flag: c_int) -> c_int {
    let _ = flag;
    call(|| {
        // SAFETY: the caller's.
        table::attach(unsafe { text(key, codes::BAD_KEY)? })?;
        Ok(0)
    })
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn tbus_fini() {
    call(|| {
        table::detach();
        Ok(0)
    });
}

/// See the header.
///
/// # Safety
/// See the crate.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tbus_new(handle: *mut c_int) -> c_int {
    call(|| {
        // SAFETY: the caller's.
        *unsafe { at(handle)? } = table::open()?;
        Ok(0)
    })
}

/// See the header.
///
/// # Safety
/// See the crate.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tbus_delete(handle: *mut c_int) {
    call(|| {
        // SAFETY: the caller's.
        let handle = unsafe { at(handle)? };
        table::close(std::mem::replace(handle, -1));
        Ok(0)
    });
}

/// See the header.
///
/// # Safety
/// See the crate.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tbus_addr_aton(text: *const c_char, addr: *mut u32) -> c_int {
    call(|| {
        // SAFETY: the caller's.
        let (text, addr) = unsafe { (self::text(text, codes::BAD_ADDRESS)?, at(addr)?) };
        *addr = parse(text)?.0;
        Ok(0)
    })
}

fn parse(text: &str) -> Result<Address, Code> {
    let address = table::bus()?.template().parse(text);
    address.map_err(|error| codes::because(codes::BAD_ADDRESS, &error))
}

/// Writes an address and a zero byte into `room`, if both fit.
fn print(addr: u32, room: &mut [u8]) -> Option<()> {
    use std::io::Write;
    let template = table::bus().map_or(Template::default(), |bus| bus.template());
    write!(&mut *room, "{}\0", template.show(Address(addr))).ok()
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn tbus_addr_ntoa(addr: u32) -> *const c_char {
    thread_local! {
        static TEXT: RefCell<[u8; 48]> = const { RefCell::new([0; 48]) };
    }
    let text = catch_unwind(|| {
        TEXT.with(|text| {
            let mut text = text.borrow_mut();
            print(addr, &mut *text)?; // four numbers below 2^32 fit
            Some(text.as_ptr().cast())
        })
    });
    text.ok().flatten().unwrap_or(c"".as_ptr())
}

/// See the header.
///
/// # Safety
/// See the crate.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tbus_addr_ntop(
    addr: u32,
    text: *mut c_char,
    size: usize,
) -> *const c_char {
    let mut copy = [0u8; 48];
    let printed = catch_unwind(AssertUnwindSafe(|| print(addr, &mut copy)));
    let length = copy.iter().position(|byte| *byte == 0).unwrap_or(0) + 1;
    if text.is_null() || size < length || !matches!(printed, Ok(Some(()))) {
        return std::ptr::null();
    }
    // SAFETY: not null, and by the caller's word valid for writing `size` bytes, which are enough.
    unsafe { std::ptr::copy_nonoverlapping(copy.as_ptr().cast(), text, length) };
    text
}

/// See the header.
///
/// # Safety
/// See the crate.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tbus_bind(handle: c_int, addr: u32) -> c_int {
    // SAFETY: the caller's.
    call(|| unsafe { bind(handle, Address(addr)) })
}

/// See the header.
///
/// # Safety
/// See the crate.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tbus_bind_by_str(handle: c_int, addr: *const c_char) -> c_int {
    // SAFETY: the caller's.
    call(|| unsafe { bind(handle, parse(text(addr, codes::BAD_ADDRESS)?)?) })
}

/// # Safety
/// No other thread is in a call of this handle.
unsafe fn bind(handle: c_int, address: Address) -> Result<c_int, Code> {
    // SAFETY: the caller's.
    let (sending, receiving) = unsafe { (sending(handle)?, receiving(handle)?) };
    let bus = table::bus()?;
    let endpoint = bus.bind(address).map_err(codes::told)?;
    sending.lines.bind(endpoint.clone())?;
    receiving.lines.bind(endpoint)?;
    receiving.watch();
    Ok(0)
}

/// See the header.
///
/// # Safety
/// See the crate.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tbus_refresh_handle(handle: c_int) -> c_int {
    call(|| {
        // SAFETY: the caller's.
        let (sending, receiving) = unsafe { (sending(handle)?, receiving(handle)?) };
        sending.lines.forgive()?;
        receiving.lines.forgive()?;
        receiving.watch();
        Ok(0)
    })
}

// ---- Sending --------------------------------------------------------------------------------------------------

/// See the header.
///
/// # Safety
/// See the crate.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tbus_send(
    handle: c_int,
    src: *mut u32,
    dst: *mut u32,
    data: *const c_void,
    len: usize,
    flag: c_int,
) -> c_int {
    // SAFETY: the caller's.
    unsafe {
        match send_here(handle, src, dst, data, len) {
            Some(result) => result,
            None => send_any(handle, src, dst, data, len, flag),
        }
    }
}

/// tbus_send in the usual case: to the channel of the last call, which takes the message or is full. JUSTIFICATION: this and
/// its brother of tbus_recv cost half the instructions that the general case costs, which every message would pay.
///
/// # Safety
/// As tbus_send.
#[inline(always)]
unsafe fn send_here(
    handle: c_int,
    src: *mut u32,
    dst: *mut u32,
    data: *const c_void,
    len: usize,
) -> Option<c_int> {
    let open = table::known(handle)?;
    if src.is_null() || dst.is_null() || data.is_null() || len > isize::MAX as usize {
        return None;
    }
    // SAFETY: as in `sending`; the pointers are not null, and valid by the caller's word.
    unsafe {
        let payload = std::slice::from_raw_parts(data.cast(), len);
        (*(*open).sending.get()).send_here(*src, *dst, payload)
    }
}

/// tbus_send in all other cases.
///
/// # Safety
/// As tbus_send.
#[inline(never)]
unsafe extern "C" fn send_any(
    handle: c_int,
    src: *mut u32,
    dst: *mut u32,
    data: *const c_void,
    len: usize,
    _: c_int,
) -> c_int {
    call(|| {
        // SAFETY: the caller's.
        let (sending, ends) = unsafe { (sending(handle)?, ends(src, dst)?) };
        // SAFETY: the caller's.
        let sent = sending.send(ends, &unsafe { bytes(data, len)? })?;
        // SAFETY: not null, by `ends`.
        unsafe { (*src, *dst) = sent };
        Ok(0)
    })
}

/// See the header.
///
/// # Safety
/// See the crate.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tbus_sendv(
    handle: c_int,
    src: *mut u32,
    dst: *mut u32,
    iov: *const libc::iovec,
    iovcnt: c_int,
    flag: c_int,
) -> c_int {
    let _ = flag;
    call(|| {
        // SAFETY: the caller's.
        let (sending, ends) = unsafe { (sending(handle)?, ends(src, dst)?) };
        let count = usize::try_from(iovcnt).map_err(|_| codes::BAD_ARGUMENT)?;
        let parts = match (iov.is_null(), count) {
            (_, 0) => &[],
            (true, _) => return Err(codes::BAD_ARGUMENT),
            // SAFETY: not null, and by the caller's word valid for reading `iovcnt` elements.
            (false, _) => unsafe { std::slice::from_raw_parts(iov, count) },
        };
        if parts
            .iter()
            .any(|part| part.iov_base.is_null() && part.iov_len > 0)
        {
            return Err(codes::BAD_ARGUMENT);
        }
        let sent = sending.send(ends, &Parts(parts))?;
        // SAFETY: not null, by `ends`.
        unsafe { (*src, *dst) = sent };
        Ok(0)
    })
}

/// See the header.
///
/// # Safety
/// See the crate.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tbus_forward(
    handle: c_int,
    src: *mut u32,
    dst: *mut u32,
    data: *const c_void,
    len: usize,
    flag: c_int,
) -> c_int {
    let _ = flag;
    call(|| {
        // SAFETY: the caller's.
        let (sending, receiving) = unsafe { (sending(handle)?, receiving(handle)?) };
        // SAFETY: the caller's.
        let (ends, payload) = unsafe { (ends(src, dst)?, bytes(data, len)?) };
        let hops = receiving.way_back();
        match hops.addresses().len() {
            0 => return Err(codes::NO_HOP),
            bus::MAX_HOPS => return Err(codes::TOO_MANY_HOPS),
            _ => {}
        }
        let message = Passed {
            payload,
            hops,
            forward: true,
        };
        let sent = sending.send(ends, &message)?;
        // SAFETY: not null, by `ends`.
        unsafe { (*src, *dst) = sent };
        Ok(0)
    })
}

/// See the header.
///
/// # Safety
/// See the crate.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tbus_backward(
    handle: c_int,
    src: *mut u32,
    dst: *mut u32,
    data: *const c_void,
    len: usize,
    flag: c_int,
) -> c_int {
    let _ = flag;
    call(|| {
        // SAFETY: the caller's.
        let (sending, receiving) = unsafe { (sending(handle)?, receiving(handle)?) };
        // SAFETY: the caller's.
        let (_, payload) = unsafe { (ends(src, dst)?, bytes(data, len)?) };
        let mut hops = receiving.way_back();
        let (Some(to), Some((from, _))) = (hops.pop(), receiving.last()) else {
            return Err(codes::NO_HOP);
        };
        let message = Passed {
            payload,
            hops,
            forward: false,
        };
        let sent = sending.send((from, to.0), &message)?;
        // SAFETY: not null, by `ends`.
        unsafe { (*src, *dst) = sent };
        Ok(0)
    })
}

// ---- Receiving ------------------------------------------------------------------------------------------------

/// See the header.
///
/// # Safety
/// See the crate.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tbus_recv(
    handle: c_int,
    src: *mut u32,
    dst: *mut u32,
    data: *mut c_void,
    len: *mut usize,
    flag: c_int,
) -> c_int {
    // SAFETY: the caller's.
    unsafe {
        match receive_here(handle, src, dst, data, len) {
            Some(result) => result,
            None => receive_any(handle, src, dst, data, len, flag),
        }
    }
}

/// tbus_recv in the usual case: from the channel of the last call, which has a message that fits, or none.
///
/// # Safety
/// As tbus_recv.
#[inline(always)]
unsafe fn receive_here(
    handle: c_int,
    src: *mut u32,
    dst: *mut u32,
    data: *mut c_void,
    len: *mut usize,
) -> Option<c_int> {
    let open = table::known(handle)?;
    // SAFETY: as in `receiving`; the pointers are null or valid by the caller's word.
    unsafe {
        let (src, dst, len) = (src.as_ref()?, dst.as_ref()?, len.as_mut()?);
        (*(*open).receiving.get()).receive_here(*src, *dst, data.cast(), len)
    }
}

/// tbus_recv in the other usual case: from any, and the channel whose turn it is has a message that fits.
///
/// # Safety
/// As tbus_recv.
#[inline(always)]
unsafe fn receive_in_turn(
    handle: c_int,
    src: *mut u32,
    dst: *mut u32,
    data: *mut c_void,
    len: *mut usize,
) -> Option<()> {
    let open = table::known(handle)?;
    // SAFETY: as in `receive_here`.
    unsafe {
        let ends = (*src.as_ref()?, *dst.as_ref()?);
        let receiving = &mut *(*open).receiving.get();
        let came = receiving.receive_in_turn(ends, data.cast(), len.as_mut()?)?;
        (*src, *dst) = came;
    }
    Some(())
}

/// tbus_recv in all other cases.
///
/// # Safety
/// As tbus_recv.
#[inline(never)]
unsafe extern "C" fn receive_any(
    handle: c_int,
    src: *mut u32,
    dst: *mut u32,
    data: *mut c_void,
    len: *mut usize,
    _: c_int,
) -> c_int {
    // SAFETY: the caller's.
    if unsafe { receive_in_turn(handle, src, dst, data, len) }.is_some() {
        return 0;
    }
    call(|| {
        // SAFETY: the caller's.
        let (receiving, ends) = unsafe { (receiving(handle)?, ends(src, dst)?) };
        // SAFETY: the caller's.
        let came = unsafe { receiving.receive(ends, data.cast(), at(len)?)? };
        // SAFETY: not null, by `ends`.
        unsafe { (*src, *dst) = came };
        Ok(0)
    })
}

/// See the header.
///
/// # Safety
/// See the crate.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tbus_peek_msg(
    handle: c_int,
    src: *mut u32,
    dst: *mut u32,
    data: *mut *const c_char,
    len: *mut usize,
    flag: c_int,
) -> c_int {
    let _ = flag;
    call(|| {
        // SAFETY: the caller's.
        let (receiving, ends) = unsafe { (receiving(handle)?, ends(src, dst)?) };
        // SAFETY: the caller's.
        let (data, len) = unsafe { (at(data)?, at(len)?) };
        let (came, place) = receiving.peek(ends)?;
        (*data, *len) = (place.0.cast(), place.1);
        // SAFETY: not null, by `ends`.
        unsafe { (*src, *dst) = came };
        Ok(0)
    })
}

/// See the header.
///
/// # Safety
/// See the crate.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tbus_delete_msg(
    handle: c_int,
    src: *mut u32,
    dst: *mut u32,
    flag: c_int,
) -> c_int {
    let _ = flag;
    call(|| {
        // SAFETY: the caller's.
        let (receiving, ends) = unsafe { (receiving(handle)?, ends(src, dst)?) };
        let came = receiving.delete(ends)?;
        // SAFETY: not null, by `ends`.
        unsafe { (*src, *dst) = came };
        Ok(0)
    })
}

/// See the header.
///
/// # Safety
/// See the crate.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tbus_get_hops(handle: c_int, hops: *mut u32, count: *mut usize) -> c_int {
    call(|| {
        // SAFETY: the caller's.
        let (way, count): (Hops, _) = unsafe { (receiving(handle)?.way_back(), at(count)?) };
        let way = way.addresses();
        if std::mem::replace(count, way.len()) < way.len() {
            return Err(codes::BUFFER_TOO_SHORT);
        }
        if !way.is_empty() {
            // SAFETY: null is refused, and by the caller's word valid for as many as `count` was.
            let first = unsafe { at(hops)? };
            for (index, hop) in way.iter().enumerate() {
                // SAFETY: as above.
                unsafe { *(first as *mut u32).add(index) = hop.0 };
            }
        }
        Ok(0)
    })
}

/// See the header.
///
/// # Safety
/// See the crate.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tbus_get_event_fd(handle: c_int) -> c_int {
    // SAFETY: the caller's.
    call(|| unsafe { receiving(handle)? }.event_fd())
}

// ---- What is in a channel -------------------------------------------------------------------------------------

/// See the header.
///
/// # Safety
/// See the crate.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tbus_get_channel_flux(
    handle: c_int,
    local: u32,
    peer: u32,
    flux: *mut Flux,
) -> c_int {
    call(|| {
        // SAFETY: the caller's.
        let (sending, flux) = unsafe { (sending(handle)?, at(flux)?) };
        let [out, into] = rings(sending, local, peer)?.each_ref().map(Ring::status);
        *flux = Flux {
            send_msgs: out.tail.sequence,
            send_bytes: out.tail.position,
            recv_msgs: into.released.sequence,
            recv_bytes: into.released.position,
        };
        Ok(0)
    })
}

/// See the header.
///
/// # Safety
/// See the crate.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tbus_get_channel_sendside_used_proportion(
    handle: c_int,
    local: u32,
    peer: u32,
) -> c_int {
    call(|| {
        // SAFETY: the caller's.
        let [out, _] = rings(unsafe { sending(handle)? }, local, peer)?;
        Ok(used(out))
    })
}

/// See the header.
///
/// # Safety
/// See the crate.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tbus_get_channel_recvside_used_proportion(
    handle: c_int,
    local: u32,
    peer: u32,
) -> c_int {
    call(|| {
        // SAFETY: the caller's.
        let [_, into] = rings(unsafe { sending(handle)? }, local, peer)?;
        Ok(used(into))
    })
}

/// Of one channel: the first stands for itself, all for nothing.
fn rings(sending: &mut Sending, local: u32, peer: u32) -> Result<&[Ring; 2], Code> {
    if local == ALL || peer == ALL {
        return Err(codes::BAD_ARGUMENT);
    }
    sending.rings(local, peer)
}

/// Percent of a ring that unread messages take, rounded up: 0 is empty.
fn used(ring: &Ring) -> c_int {
    let (unread, capacity) = (ring.status().unread_bytes, ring.header().capacity);
    (unread.min(capacity) * 100).div_ceil(capacity) as c_int
}

// ---- What went wrong ------------------------------------------------------------------------------------------

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn tbus_error_string(code: c_int) -> *const c_char {
    codes::text(code).as_ptr()
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn tbus_last_error() -> *const c_char {
    codes::detail().as_ptr()
}

const _: () = assert!(FIRST == 0 && ALL == u32::MAX); // as the header has them
