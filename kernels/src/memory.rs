//! What the system is told about memory: large pages for large buffers, and what goes back at once.

#[cfg(all(target_env = "musl", feature = "mimalloc"))]
use mimalloc::MiMalloc as Heap;
#[cfg(not(all(target_env = "musl", feature = "mimalloc")))]
use std::alloc::System as Heap;
use std::alloc::{GlobalAlloc, Layout};
use std::sync::{Mutex, PoisonError};

/// The system's allocator, or mimalloc where that is musl's, which gives every buffer back at once; but for one thing: Linux is told that
/// buffers of 4 MiB or more are worth pages of 2 MiB.
///
/// Matrices are read in strides of many kilobytes, so that small pages cost a look-up for each few numbers; and what a layer gives
/// is new memory each time, of which every small page costs a fault. Nothing else changes: what is freed goes back as before.
#[derive(Debug, Clone, Copy)]
pub struct LargePages;

/// From here on the advice is worth a call.
const LARGE: usize = 4 << 20;

/// Neither glibc nor mimalloc takes buffers larger than this from its heap.
const MAPPED: usize = 32 << 20;

// SAFETY: all memory is the heap's, by the same layouts.
unsafe impl GlobalAlloc for LargePages {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's.
        advised(unsafe { Heap.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's.
        advised(unsafe { Heap.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's.
        advised(unsafe { Heap.realloc(old, layout, size) }, size)
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { Heap.dealloc(at, layout) }
    }
}

/// The same buffer, with large pages for all of it but its ends.
fn advised(at: *mut u8, size: usize) -> *mut u8 {
    if size >= LARGE && !at.is_null() {
        pages::large(at, size);
    }
    at
}

/// Says of a large matrix that nobody has written to yet that only a triangle of it will be: of each row a part. With small pages the
/// other triangle takes no memory; large ones would hold it, too.
pub fn triangular<T>(matrix: &[T]) {
    // Smaller buffers may lie in the heap, whose next owner the advice would follow.
    if size_of_val(matrix) > MAPPED {
        pages::small(matrix.as_ptr().cast(), size_of_val(matrix));
    }
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

/// Has every buffer of 128 KiB or more go back to the system as soon as it is freed, for work that many buffers of many sizes pass
/// through: glibc would keep up to 32 MiB of them for later, and its peak is larger by that. Costs some percent of the time. Other
/// allocators stay as they are.
pub fn give_back_early() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets a number of the allocator, which it may change itself at any time.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let layout = Layout::from_size_align(64 << 20, 8).unwrap();
        // SAFETY: the layout is that of the allocation, whose bytes are all zero and which lives until the end.
        let at = unsafe { LargePages.alloc_zeroed(layout) };
        let middle = at as usize + layout.size() / 2;
        let flag = |wanted: &str| {
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
        flag("hg");
        // SAFETY: as above.
        triangular(unsafe { std::slice::from_raw_parts(at, layout.size()) });
        flag("nh");
        // SAFETY: as above.
        unsafe { LargePages.dealloc(at, layout) };
    }
}
