#![no_main]

offshoot_fuzz::fuzz!("autodiff");
