//! The backward pass of every architecture that has one, against small differences of the forward pass.

mod common;

use candle_core::{Device, Tensor};
use common::folder;
use common::golden;
use llmq::model::block::Block;
use llmq::model::frame::Frame;
use llmq::model::states::States;
use llmq::model::{Part, Reads};
use llmq::pipeline::loaded_model::LoadedModel;
use llmq_kernels::gemm::Precision;

fn numbers(like: &Tensor, step: f32) -> Tensor {
    let x: Vec<f32> = (0..like.elem_count()).map(|i| (i as f32 * step).sin()).collect();
    Tensor::from_vec(x, like.shape(), &Device::Cpu).unwrap()
}

fn inner(a: &Tensor, b: &Tensor) -> f64 {
    let [a, b] = [a, b].map(|x| x.flatten_all().unwrap().to_vec1::<f32>().unwrap());
    a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn norm(a: &Tensor) -> f64 {
    inner(a, a).sqrt()
}

/// A model in the making: its first blocks, in front of which the stream may be moved, and whose layers' weights.
struct Setup<'a> {
    blocks: Vec<Block<'a>>,
    start: States,
}

impl Setup<'_> {
    /// What is in front of each block, and behind the last.
    fn states(&self, start: &Tensor) -> Vec<States> {
        let mut states = vec![self.start.with(start.clone())];
        for block in &self.blocks {
            states.push(block.forward(states.last().unwrap()).unwrap());
        }
        states
    }
}

#[test]
fn gradients_are_those_of_small_differences() {
    let (mut tried, mut wrong) = (Vec::new(), Vec::new());
    for golden in golden::all() {
        let out = folder();
        let model = out.path().join("model");
        golden.checkpoint.write(&model);
        let Ok(loaded) = LoadedModel::open(&model, None) else { continue };
        if loaded.model.obstacle_to_backward().is_some() {
            continue;
        }
        tried.push(golden.name.clone());
        let positions = golden.windows[0].len();
        let frame = Frame::new(&loaded.model, loaded.pairing(), positions, &Device::Cpu).unwrap();
        let frame = frame.with_precision(Precision::Single);
        let mut blocks = Vec::new();
        for i in 0..loaded.model.blocks.len() {
            let mut block = Block::new(&frame, i);
            loaded.model.block(i).iter().for_each(|spec| block.set(spec, loaded.read(spec).unwrap()).unwrap());
            blocks.push(block);
        }
        let start = States::cat(&loaded.embed(&golden.windows, &Device::Cpu).unwrap()).unwrap();
        let mut setup = Setup { blocks, start };
        let start = setup.start.h.clone();
        let states = setup.states(&start);
        let behind = numbers(&start, 0.9);
        let loss = |setup: &Setup, start: &Tensor| inner(&setup.states(start).last().unwrap().h, &behind);
        let mut check = |what: String, got: f64, size: f64, moved: &dyn Fn(f32) -> f64| {
            let wanted = (moved(1.0) - moved(-1.0)) / 2.0;
            if !(size > 0.0 && (got - wanted).abs() < 1e-2 * size) {
                wrong.push(format!("{}: {what}: {got:e} instead of {wanted:e}, of {size:e}", golden.name));
            }
        };
        let mut grad = behind.clone();
        for i in (0..setup.blocks.len()).rev() {
            let specs = loaded.model.block(i);
            let linear = |reads: &Option<Reads>| matches!(reads, Some(Reads::Site(_)));
            let layers: Vec<_> = specs.iter().filter(|spec| linear(&spec.reads)).collect();
            let parts: Vec<Part> = layers.iter().filter_map(|spec| spec.weight_of()).collect();
            let (front, outputs) = setup.blocks[i].backward(&states[i], &grad, &parts).unwrap();
            for (spec, output) in layers.iter().zip(&outputs) {
                let site = spec.site().unwrap();
                // In front of its half.
                let mut here = states[i].clone();
                for half in 0..site.half {
                    here = setup.blocks[i].half(half, &here, &states[i]).unwrap();
                }
                let x = setup.blocks[i].at(site.place, site.half, &here, &states[i]).unwrap();
                // Weights that move by U move the outputs by X·Uᵀ.
                let weights = setup.blocks[i].numbers(spec).unwrap();
                let w = Tensor::from_vec(weights.clone(), spec.shape.as_slice(), &Device::Cpu).unwrap();
                let u = (numbers(&w, 2.1) * (1e-3 * norm(&w) / (w.elem_count() as f64).sqrt())).unwrap();
                let by = x.matmul(&u.t().unwrap()).unwrap();
                let original = setup.blocks[i].clone();
                let setup = std::cell::RefCell::new(&mut setup);
                check(
                    format!("{} of block {i}", spec.source),
                    inner(output, &by),
                    norm(output) * norm(&by),
                    &|times| {
                        let mut setup = setup.borrow_mut();
                        let moved = (&w + (&u * f64::from(times)).unwrap()).unwrap();
                        let moved = moved.flatten_all().unwrap().to_vec1().unwrap();
                        setup.blocks[i].set(spec, moved).unwrap();
                        let loss = loss(&setup, &start);
                        setup.blocks[i] = original.clone();
                        loss
                    },
                );
            }
            grad = front;
        }
        let u = (numbers(&start, 2.1) * (1e-3 * norm(&start) / (start.elem_count() as f64).sqrt())).unwrap();
        check("the stream in front".into(), inner(&grad, &u), norm(&grad) * norm(&u), &|times| {
            loss(&setup, &(&start + (&u * f64::from(times)).unwrap()).unwrap())
        });
    }
    println!("tried: {}", tried.join(", "));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for name in ["llama", "qwen3", "gemma2", "phi3", "gpt2", "olmo2", "falcon"] {
        assert!(tried.iter().any(|tried| tried.starts_with(name)), "{name} has no backward pass");
    }
}
