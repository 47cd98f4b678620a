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
    # Times are only worth something when nothing else runs beside: all cores of the machine are asked for.
    threads: workflow.cores if workflow.cores else 1
    resources:
        config=CONFIG,
        mem_mb=6000,
        runtime=120,
    params:
        facts=lambda w: plan.benchmark_facts(EXPERIMENT, w.run),
    shell:
        "synopsis --log {log} benchmark {resources.config} {wildcards.run}"
