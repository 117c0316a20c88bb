#![no_main]

offshoot_fuzz::fuzz!("tensors");
