//! Windows that move over images: what convolutions and pools have in common, and the two operations on them that need a
//! gradient of their own.

use crate::error::{Error, Result};
use crate::int8::onnx::proto::NodeProto;
use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};

/// How windows lie on an image of one channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Windows {
    /// Height and width of the image.
    size: [usize; 2],
    kernel: [usize; 2],
    strides: [usize; 2],
    dilations: [usize; 2],
    /// Above and to the left.
    pads: [usize; 2],
    /// How many windows fit down and across.
    pub out: [usize; 2],
}

impl Windows {
    /// Of a node with these spatial sizes of image and kernel: two, or one for sequences, which are images of height 1.
    ///
    /// # Errors
    /// An option is not supported, or nothing fits.
    pub fn of(node: &NodeProto, image: &[usize], kernel: &[usize]) -> Result<Windows> {
        let axes = image.len();
        if kernel.len() != axes || !(1..=2).contains(&axes) {
            return Err(Error::new(format!("a window of {kernel:?} on an image of {image:?}")));
        }
        let ceil = node.int_or("ceil_mode", 0) != 0;
        if ceil && node.int_or("count_include_pad", 0) != 0 {
            return Err(Error::new("ceil_mode with count_include_pad is not supported"));
        }
        let padded = |values: &[usize], fill: usize| match values {
            [one] => [fill, *one],
            both => [both[0], both[1]],
        };
        let given = |name: &str, default: usize, n: usize| -> Vec<usize> {
            let given = node.ints_of(name).filter(|given| given.len() == n);
            given.map_or(vec![default; n], |given| given.iter().map(|&n| n.max(0) as usize).collect())
        };
        let (size, kernel) = (padded(image, 1), padded(kernel, 1));
        let strides = padded(&given("strides", 1, axes), 1).map(|n| n.max(1));
        let dilations = padded(&given("dilations", 1, axes), 1).map(|n| n.max(1));
        let pads = given("pads", 0, 2 * axes);
        let mut before = padded(&pads[..axes], 0);
        let mut all = padded(&[0, 1].map(|at| pads[at % axes] + pads[axes + at % axes])[2 - axes..], 0);
        let auto = node.attribute("auto_pad").and_then(|attribute| attribute.s.as_deref()).unwrap_or(b"NOTSET");
        for at in 0..2 {
            let reach = (kernel[at].max(1) - 1) * dilations[at] + 1;
            match auto {
                b"NOTSET" | b"" => {}
                b"VALID" => (all[at], before[at]) = (0, 0),
                _ => {
                    let windows = size[at].div_ceil(strides[at]);
                    all[at] = ((windows.max(1) - 1) * strides[at] + reach).saturating_sub(size[at]);
                    before[at] = if auto == b"SAME_LOWER" { all[at].div_ceil(2) } else { all[at] / 2 };
                }
            }
            if size[at] + all[at] < reach {
                return Err(Error::new(format!("a window of {kernel:?} does not fit an image of {image:?}")));
            }
        }
        let out = [0, 1].map(|at| {
            let reach = (kernel[at].max(1) - 1) * dilations[at] + 1;
            let moves = size[at] + all[at] - reach;
            let windows = if ceil { moves.div_ceil(strides[at]) } else { moves / strides[at] } + 1;
            // One more may hang over the end, but not lie behind it.
            if ceil && (windows - 1) * strides[at] >= size[at] + before[at] { windows - 1 } else { windows }
        });
        Ok(Windows { size, kernel, strides, dilations, pads: before, out })
    }

    /// Numbers in a window.
    pub fn area(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Windows on an image.
    pub fn count(&self) -> usize {
        self.out[0] * self.out[1]
    }

    /// Whether each window is one number, and all numbers are windows.
    pub fn trivial(&self) -> bool {
        self.area() == 1 && self.strides == [1, 1] && self.out == self.size
    }

    /// The place in the image of the `k`th number of the `p`th window; none in the padding.
    fn at(&self, k: usize, p: usize) -> Option<usize> {
        let place = [k / self.kernel[1], k % self.kernel[1]];
        let window = [p / self.out[1], p % self.out[1]];
        let mut found = [0; 2];
        for axis in 0..2 {
            let at = window[axis] * self.strides[axis] + place[axis] * self.dilations[axis];
            found[axis] = at.checked_sub(self.pads[axis]).filter(|&at| at < self.size[axis])?;
        }
        Some(found[0] * self.size[1] + found[1])
    }

    /// [`Self::at`] for all windows and numbers, `[area, count]`.
    fn places(&self) -> Vec<Option<usize>> {
        (0..self.area()).flat_map(|k| (0..self.count()).map(move |p| self.at(k, p))).collect()
    }

    /// For each window, how many of its numbers are in the image.
    pub fn filled(&self) -> Vec<usize> {
        (0..self.count()).map(|p| (0..self.area()).filter(|&k| self.at(k, p).is_some()).count()).collect()
    }

    /// All windows: `[n, channels, h, w]` to `[n, channels, area, count]`, zero in the padding.
    pub fn unfold(self, x: &Tensor) -> Result<Tensor> {
        let (n, channels) = (x.dims()[0], x.dims()[1]);
        if self.trivial() {
            return Ok(x.reshape((n, channels, 1, self.count()))?);
        }
        Ok(x.contiguous()?.apply_op1(Unfold(self))?.reshape((n, channels, self.area(), self.count()))?)
    }

    /// The largest number of each window: `[n, channels, h, w]` to `[n, channels, count]`.
    pub fn largest(self, x: &Tensor) -> Result<Tensor> {
        let (n, channels) = (x.dims()[0], x.dims()[1]);
        Ok(x.contiguous()?.apply_op1(Largest(self))?.reshape((n, channels, self.count()))?)
    }
}

/// The numbers of a tensor that lies in one piece.
fn read<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&storage.as_slice::<f32>()?[from..to]),
        None => candle_core::bail!("a tensor that is not contiguous: {layout:?}"),
    }
}

/// Its gradient adds up what each window says about a number.
struct Unfold(Windows);

impl CustomOp1 for Unfold {
    fn name(&self) -> &'static str {
        "unfold"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (x, places) = (read(x, layout)?, self.0.places());
        let image = self.0.size[0] * self.0.size[1];
        let mut y = Vec::with_capacity(x.len() / image.max(1) * places.len());
        for x in x.chunks_exact(image) {
            y.extend(places.iter().map(|place| place.map_or(0.0, |at| x[at])));
        }
        let length = y.len();
        Ok((CpuStorage::F32(y), length.into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (grad, places) = (grad.flatten_all()?.to_vec1::<f32>()?, self.0.places());
        let image = self.0.size[0] * self.0.size[1];
        let mut back = vec![0.0; x.elem_count()];
        for (back, grad) in back.chunks_exact_mut(image).zip(grad.chunks_exact(places.len())) {
            for (place, g) in places.iter().zip(grad) {
                if let Some(at) = place {
                    back[*at] += g;
                }
            }
        }
        Ok(Some(Tensor::from_vec(back, x.dims(), x.device())?))
    }
}

/// Its gradient goes to the first of the largest: in 8 bits, many are equal.
struct Largest(Windows);

impl Largest {
    /// For each window of an image, where its largest number is.
    fn winners<'a>(&'a self, x: &'a [f32], places: &'a [Option<usize>]) -> impl Iterator<Item = usize> + 'a {
        let count = self.0.count();
        (0..count).map(move |p| {
            let inside = (0..self.0.area()).filter_map(|k| places[k * count + p]);
            inside.reduce(|best, at| if x[at] > x[best] { at } else { best }).unwrap_or(0)
        })
    }
}

impl CustomOp1 for Largest {
    fn name(&self) -> &'static str {
        "largest-of-windows"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (x, places) = (read(x, layout)?, self.0.places());
        let mut y = Vec::new();
        for x in x.chunks_exact(self.0.size[0] * self.0.size[1]) {
            y.extend(self.winners(x, &places).map(|at| x[at]));
        }
        let length = y.len();
        Ok((CpuStorage::F32(y), length.into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let (data, grad) = (x.flatten_all()?.to_vec1::<f32>()?, grad.flatten_all()?.to_vec1::<f32>()?);
        let (image, places) = (self.0.size[0] * self.0.size[1], self.0.places());
        let mut back = vec![0.0; data.len()];
        let images = back.chunks_exact_mut(image).zip(data.chunks_exact(image));
        for ((back, x), grad) in images.zip(grad.chunks_exact(self.0.count())) {
            for (at, g) in self.winners(x, &places).zip(grad) {
                back[at] += g;
            }
        }
        Ok(Some(Tensor::from_vec(back, x.dims(), x.device())?))
    }
}
