# Time and memory of decoding with and without a compressed context.


rule benchmark:
    input:
        inputs(STAGES["benchmark"]),
    output:
        outputs(STAGES["benchmark"]),
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
        gpu=1,
        mem_mb=grows(6000),
        runtime=grows(120),
    params:
        fingerprint=fingerprint(STAGES["benchmark"]),
    shell:
        "synopsis --log {log:q} benchmark {resources.config} {wildcards.run:q}"
