#![no_main]

offshoot_fuzz::fuzz!("external");
