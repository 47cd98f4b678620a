# Time and memory of decoding with and without a compressed context.


rule benchmark:
    input:
        model=lambda w: LAYOUT.model(w.run),
    output:
        samples=RESULTS / "benchmark" / "{run}.csv",
        provenance=RESULTS / "benchmark" / "{run}.json",
    log:
        LOGS / "benchmark" / "{run}.log",
    benchmark:
        LOGS / "benchmark" / "{run}.tsv"
    conda:
        "../../envs/synopsis.yaml"
    # Times are worth something only when nothing else runs beside: Snakemake cuts this down to all cores there are.
    threads: 256
    resources:
        config=CONFIG,
        mem_mb=6000,
        runtime=120,
    params:
        facts=lambda w: plan.benchmark_facts(EXPERIMENT, w.run),
    shell:
        "synopsis --log {log:q} benchmark {resources.config} {wildcards.run:q}"
