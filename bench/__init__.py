"""Side-by-side benchmarks: nginx directly, through Sluice, through Envoy and through haproxy. See docs/benchmarks.md."""
