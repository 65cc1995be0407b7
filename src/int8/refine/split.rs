//! Which calibration samples teach, and which judge.

/// One in so many samples is held out, to judge by.
const HELD_OUT: usize = 5;

/// With fewer samples than these, nobody could tell what helps.
pub const LEAST: usize = 20;

/// The most samples that teach: Hessians and means hardly change with more.
const MOST_TEACH: usize = 256;

/// The most samples that judge.
const MOST_JUDGE: usize = 128;

/// The numbers of samples, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// Those to learn from.
    pub teach: Vec<usize>,
    /// Those held out.
    pub judge: Vec<usize>,
}

impl Split {
    /// Every fifth sample is held out; none if there are too few.
    pub fn of(samples: usize) -> Option<Split> {
        let (judge, teach): (Vec<usize>, Vec<usize>) = (0..samples).partition(|at| at % HELD_OUT == HELD_OUT - 1);
        (samples >= LEAST).then(|| Split { teach: spread(&teach, MOST_TEACH), judge: spread(&judge, MOST_JUDGE) })
    }
}

/// So many of them, or all, spread evenly.
pub fn spread<T: Copy>(all: &[T], count: usize) -> Vec<T> {
    let (n, count) = (all.len(), count.min(all.len()));
    // The i-th is taken if the share reaches the next whole number with it.
    (0..n).filter(|i| (i + 1) * count / n > i * count / n).map(|i| all[i]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_five_judges_and_no_sample_does_both() {
        assert_eq!(Split::of(LEAST - 1), None);
        let split = Split::of(20).unwrap();
        assert_eq!((split.teach.len(), &split.judge[..]), (16, &[4, 9, 14, 19][..]));
        for n in [21, 100, 1000, 5003] {
            let Split { teach, judge } = Split::of(n).unwrap();
            assert!(judge.len() == (n / 5).min(MOST_JUDGE) && teach.len() == (n - n / 5).min(MOST_TEACH), "{n}");
            assert!(teach.is_sorted() && judge.is_sorted() && !teach.iter().any(|at| judge.contains(at)));
            // Spread over all of them.
            assert!(*teach.last().unwrap() + 10 > n - n / 50 && *judge.last().unwrap() + 10 > n - n / 50, "{n}");
        }
    }
}
