//! What the system is told about memory: large pages for large buffers, and what goes back at once.

#[cfg(all(target_env = "musl", feature = "mimalloc"))]
use mimalloc::MiMalloc as Heap;
#[cfg(not(all(target_env = "musl", feature = "mimalloc")))]
use std::alloc::System as Heap;
use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The system's allocator, or mimalloc where that is musl's, which gives every buffer back at once; but for two things.
///
/// Linux is told that buffers of 4 MiB or more are worth pages of 2 MiB: matrices are read in strides of many kilobytes, so that small
/// pages cost a look-up for each few numbers.
///
/// And such a buffer is kept when it is freed, for the next of its size: layers ask for the same few sizes again and again, and what the
/// system gives has to be cleared, in a virtual machine often found first, which was a tenth of a run. With those in use, the kept ones
/// take no more than 7/8 of what those in use took at their most: what is smaller than a large buffer fits beside them.
#[derive(Debug, Clone, Copy)]
pub struct LargePages;

/// From here on the advice is worth a call, and a buffer is worth keeping.
const LARGE: usize = 4 << 20;

/// Neither glibc nor mimalloc takes buffers larger than this from its heap.
const MAPPED: usize = 32 << 20;

// SAFETY: all memory is the heap's, by the same layouts; a buffer that was kept is nobody else's.
unsafe impl GlobalAlloc for LargePages {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() >= LARGE {
            let mut kept = kept();
            if let Some(at) = kept.take(layout) {
                return at;
            }
            kept.make_room(layout.size());
        }
        // SAFETY: the caller's.
        advised(unsafe { Heap.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if layout.size() < LARGE {
            // SAFETY: the caller's.
            return unsafe { Heap.alloc_zeroed(layout) };
        }
        let mut kept = kept();
        if TRIANGLE.get() {
            kept.make_room(layout.size() / 2);
            // SAFETY: the caller's.
            let at = unsafe { Heap.alloc_zeroed(layout) };
            kept.triangles.push(at as usize);
            return at;
        }
        if let Some(at) = kept.take(layout) {
            drop(kept);
            // SAFETY: it has so many bytes.
            unsafe { at.write_bytes(0, layout.size()) };
            return at;
        }
        kept.make_room(layout.size());
        drop(kept);
        // SAFETY: the caller's.
        advised(unsafe { Heap.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if layout.size().max(size) >= LARGE {
            let mut kept = kept();
            kept.forget(old, layout);
            if size >= LARGE {
                kept.make_room(size);
            }
        }
        // SAFETY: the caller's.
        advised(unsafe { Heap.realloc(old, layout, size) }, size)
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        if layout.size() < LARGE || !kept().keep(at, layout) {
            // SAFETY: the caller's.
            unsafe { Heap.dealloc(at, layout) }
        }
    }
}

/// Large buffers that were freed, and may be used again.
struct Kept {
    /// Where each begins and how it was asked for, oldest first.
    buffers: Vec<(usize, Layout)>,
    bytes: usize,
    /// Bytes of large buffers in use.
    used: usize,
    /// The most that those were.
    most: usize,
    /// Where each [`triangle`] in use begins. Half of it is no memory, which it would be if another got it.
    triangles: Vec<usize>,
    /// Whether any are kept at all.
    keeps: bool,
}

static KEPT: Mutex<Kept> = Mutex::new(Kept::new());

fn kept() -> MutexGuard<'static, Kept> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kept {
    const fn new() -> Kept {
        Kept { buffers: Vec::new(), bytes: 0, used: 0, most: 0, triangles: Vec::new(), keeps: true }
    }

    /// The newest that was asked for in the same way.
    fn take(&mut self, layout: Layout) -> Option<*mut u8> {
        let i = self.buffers.iter().rposition(|kept| kept.1 == layout)?;
        self.used += layout.size();
        Some(self.remove(i).0 as *mut u8)
    }

    /// What a new buffer takes the place of is given back to the system.
    fn make_room(&mut self, bytes: usize) {
        self.used += bytes;
        self.most = self.most.max(self.used);
        self.shrink(self.room());
    }

    /// How many bytes may be kept.
    fn room(&self) -> usize {
        (self.most - self.most / 8).saturating_sub(self.used)
    }

    /// A large buffer is no longer in use. Whether it was a triangle.
    fn forget(&mut self, at: *mut u8, layout: Layout) -> bool {
        let triangle = self.triangles.iter().position(|own| *own == at as usize);
        if let Some(i) = triangle {
            self.triangles.swap_remove(i);
        }
        if layout.size() >= LARGE {
            self.used -= if triangle.is_some() { layout.size() / 2 } else { layout.size() };
        }
        triangle.is_some()
    }

    /// Whether a freed buffer is kept.
    fn keep(&mut self, at: *mut u8, layout: Layout) -> bool {
        if self.forget(at, layout) || !self.keeps {
            return false;
        }
        self.buffers.push((at as usize, layout));
        self.bytes += layout.size();
        self.shrink(self.room());
        true
    }

    /// Gives the oldest back to the system until no more than so many bytes are left.
    fn shrink(&mut self, bytes: usize) {
        while self.bytes > bytes {
            let (at, layout) = self.remove(0);
            // SAFETY: it came from there with this layout, and whoever had it freed it.
            unsafe { Heap.dealloc(at as *mut u8, layout) };
        }
    }

    fn remove(&mut self, i: usize) -> (usize, Layout) {
        let buffer = self.buffers.remove(i);
        self.bytes -= buffer.1.size();
        buffer
    }
}

/// Numbers of which any bits are one.
pub trait Number: Copy + sealed::Sealed {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for u8 {}
    impl Sealed for f32 {}
}

impl<T: sealed::Sealed + Copy> Number for T {}

/// `n` numbers that are whatever lay there, for a buffer that is written whole before it is read: zeros would cost as much as writing
/// it. Without optimization all their bits are set, which makes NaN of an `f32` that was not written.
pub fn unwritten<T: Number>(n: usize) -> Vec<T> {
    let mut out = Vec::<T>::with_capacity(n);
    if cfg!(any(debug_assertions, not(any(target_arch = "x86_64", target_arch = "aarch64")))) {
        // SAFETY: so many there is room for.
        unsafe { out.as_mut_ptr().write_bytes(0xff, n) };
    }
    // What the compiler does not see into may have written anything there, after which every bit has a value.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    // SAFETY: no instructions.
    unsafe {
        std::arch::asm!("/* {} */", in(reg) out.as_mut_ptr(), options(nostack, preserves_flags));
    }
    // SAFETY: there is room, and any bits are a number.
    unsafe { out.set_len(n) };
    out
}

/// The same buffer, with large pages for all of it but its ends.
fn advised(at: *mut u8, size: usize) -> *mut u8 {
    if size >= LARGE && !at.is_null() {
        pages::large(at, size);
    }
    at
}

thread_local! {
    /// Whether zeros are to be a [`triangle`]'s.
    static TRIANGLE: Cell<bool> = const { Cell::new(false) };
}

/// Zeros, `[n, n]`, of which only a triangle will be written: of each row a part. With small pages the other triangle of a large matrix
/// takes no memory; large ones would hold it, too.
pub fn triangle<T: Clone + Default>(n: usize) -> Vec<T> {
    // Smaller buffers may lie in the heap, whose next owner the advice would follow.
    let large = n * n * size_of::<T>() > MAPPED;
    TRIANGLE.set(large);
    let matrix = vec![T::default(); n * n];
    TRIANGLE.set(false);
    if large {
        pages::small(matrix.as_ptr().cast(), size_of_val(&*matrix));
    }
    matrix
}

/// What a thread computes in, kept from one piece of work to the next: memory that is new costs more than what is multiplied in it.
pub struct Spare<T>(Mutex<Vec<T>>);

impl<T> Default for Spare<T> {
    fn default() -> Self {
        Spare::new()
    }
}

impl<T> Spare<T> {
    /// Nothing yet.
    pub fn new() -> Spare<T> {
        Spare(Mutex::new(Vec::new()))
    }

    /// Lends what nobody is using, or something new.
    pub fn with<R>(&self, new: impl FnOnce() -> T, work: impl FnOnce(&mut T) -> R) -> R {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let spare = lock().pop();
        let mut lent = spare.unwrap_or_else(new);
        let result = work(&mut lent);
        lock().push(lent);
        result
    }
}

/// What those that lie wholly inside a buffer of `size` bytes are to be.
#[cfg(target_os = "linux")]
mod pages {
    /// A large page.
    const PAGE: usize = 2 << 20;

    pub fn large(at: *const u8, size: usize) {
        advise(at, size, libc::MADV_HUGEPAGE);
    }

    pub fn small(at: *const u8, size: usize) {
        advise(at, size, libc::MADV_NOHUGEPAGE);
    }

    fn advise(at: *const u8, size: usize, pages: libc::c_int) {
        let (first, last) = ((at as usize).next_multiple_of(PAGE), (at as usize + size) / PAGE * PAGE);
        // SAFETY: the range lies inside a buffer, and the advice changes no content. That it may be refused does not matter.
        unsafe { libc::madvise(first as *mut libc::c_void, last - first, pages) };
    }
}

/// Systems but Linux choose by themselves.
#[cfg(not(target_os = "linux"))]
mod pages {
    pub fn large(_: *const u8, _: usize) {}

    pub fn small(_: *const u8, _: usize) {}
}

/// Has every large buffer go back to the system as soon as it is freed, for work that many buffers of many sizes pass through; and
/// with glibc every one of 128 KiB or more, of which it would keep up to 32 MiB for later. Costs some percent of the time.
pub fn give_back_early() {
    let mut kept = kept();
    kept.keeps = false;
    kept.shrink(0);
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets a number of the allocator, which it may change itself at any time.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[global_allocator]
    static MEMORY: LargePages = LargePages;

    #[test]
    fn buffers_of_all_sizes_hold_what_is_written() {
        for size in [1, 4096, LARGE - 1, LARGE, LARGE + 1, 5 * LARGE + 12345] {
            let layout = Layout::from_size_align(size, 8).unwrap();
            // SAFETY: as the trait asks: layouts are those of the allocations, and only their bytes are read.
            unsafe {
                let at = LargePages.alloc_zeroed(layout);
                assert!(std::slice::from_raw_parts(at, size).iter().all(|&x| x == 0), "{size}");
                std::slice::from_raw_parts_mut(at, size).fill(7);
                let at = LargePages.realloc(at, layout, size + LARGE);
                assert!(std::slice::from_raw_parts(at, size).iter().all(|&x| x == 7), "{size}");
                LargePages.dealloc(at, Layout::from_size_align(size + LARGE, 8).unwrap());
            }
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_system_knows_of_large_ones() {
        // Kernels may be built without.
        if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            return;
        }
        let flag = |buffer: &[f32], wanted: &str| {
            let middle = buffer.as_ptr() as usize + size_of_val(buffer) / 2;
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let mut inside = false;
            let flags = maps.lines().find_map(|line| {
                if let Some((first, rest)) = line.split_once('-')
                    && let (Ok(first), Ok(last)) =
                        (usize::from_str_radix(first, 16), usize::from_str_radix(rest.split(' ').next()?, 16))
                {
                    inside = (first..last).contains(&middle);
                }
                line.strip_prefix("VmFlags:").filter(|_| inside).map(str::to_owned)
            });
            assert!(flags.as_ref().unwrap().split(' ').any(|flag| flag == wanted), "{wanted}: {flags:?}");
        };
        flag(&vec![0.0; 4096 * 4096], "hg");
        flag(&triangle(4096), "nh");
    }

    #[test]
    fn a_freed_buffer_serves_the_next_of_its_size_and_none_add_to_the_peak() {
        let [small, large] = [1, 2].map(|n| Layout::from_size_align(n * LARGE, 64).unwrap());
        // 56 of the 64 may be in use or kept, and 52 are in use.
        let mut kept = Kept { used: 52 * LARGE, most: 64 * LARGE, ..Kept::new() };
        let new = |kept: &mut Kept, layout: Layout| {
            kept.make_room(layout.size());
            // SAFETY: the layout is not empty.
            unsafe { Heap.alloc(layout) }
        };
        let buffers = [small, large, small].map(|layout| (new(&mut kept, layout), layout));
        assert_eq!((kept.used, kept.most, kept.bytes), (56 * LARGE, 64 * LARGE, 0));
        assert!(buffers.into_iter().all(|(at, layout)| kept.keep(at, layout)));
        assert_eq!((kept.used, kept.bytes), (52 * LARGE, 4 * LARGE));
        assert_eq!(kept.take(small), Some(buffers[2].0));
        assert_eq!(kept.take(Layout::from_size_align(LARGE, 32).unwrap()), None);
        // The oldest makes room for a new one.
        let third = new(&mut kept, Layout::from_size_align(LARGE, 32).unwrap());
        assert_eq!((kept.used, kept.most, kept.bytes), (54 * LARGE, 64 * LARGE, 2 * LARGE));
        assert_eq!((kept.take(small), kept.take(large)), (None, Some(buffers[1].0)));
        // Of a triangle half counts, and it is not kept; what comes to lie there later may be.
        kept.triangles.push(third as usize);
        assert!(!kept.keep(third, small));
        kept.used += LARGE / 2;
        assert!(kept.keep(third, Layout::from_size_align(LARGE, 32).unwrap()));
        assert!(kept.keep(buffers[1].0, large) && kept.keep(buffers[2].0, small));
        kept.keeps = false;
        kept.shrink(0);
        assert_eq!((kept.used, kept.bytes, kept.buffers.len()), (52 * LARGE, 0, 0));
    }

    #[test]
    fn what_was_not_written_is_no_number_in_tests() {
        assert!(unwritten::<f32>(100).iter().all(|x| x.is_nan()));
        assert_eq!(unwritten::<u8>(3), [255; 3]);
    }
}
