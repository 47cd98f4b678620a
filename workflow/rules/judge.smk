# Judgements of two runs' outputs. The store of single judgements is not a declared output: a failed job keeps it.


rule judge:
    input:
        a=RESULTS / "generations" / "{a}" / "{split}.csv",
        b=RESULTS / "generations" / "{b}" / "{split}.csv",
        instructions=lambda w: LAYOUT.instructions(EXPERIMENT.generate.instructions),
    output:
        RESULTS / "judgements" / "{judge}" / "{a}-vs-{b}" / "{split}.json",
    log:
        LOGS / "judge" / "{judge}-{a}-vs-{b}-{split}.log",
    benchmark:
        LOGS / "judge" / "{judge}-{a}-vs-{b}-{split}.tsv"
    conda:
        "../../envs/synopsis.yaml"
    resources:
        config=CONFIG,
        mem_mb=1000,
        runtime=240,
    params:
        facts=lambda w: plan.judge_facts(EXPERIMENT, w.judge),
    shell:
        "synopsis --log {log:q} judge {resources.config} {wildcards.judge:q} {wildcards.a:q} {wildcards.b:q} {wildcards.split:q}"
