# In-context learning: one run, data set and seed in all settings.


rule icl:
    input:
        model=lambda w: LAYOUT.model(w.run),
        tokenizer=lambda w: LAYOUT.tokenizer(EXPERIMENT.base_of(w.run)),
        task=lambda w: LAYOUT.task(w.dataset),
    output:
        result=RESULTS / "icl" / "{run}" / "{dataset}" / "seed{seed}.json",
        examples=RESULTS
        / "icl"
        / "{run}"
        / "{dataset}"
        / "seed{seed}.examples.jsonl.gz",
    log:
        LOGS / "icl" / "{run}-{dataset}-seed{seed}.log",
    benchmark:
        LOGS / "icl" / "{run}-{dataset}-seed{seed}.tsv"
    conda:
        "../../envs/synopsis.yaml"
    resources:
        config=CONFIG,
        mem_mb=6000,
        runtime=240,
    params:
        facts=lambda w: plan.icl_facts(EXPERIMENT, w.run, w.dataset, int(w.seed)),
    shell:
        "synopsis --log {log:q} icl {resources.config} {wildcards.run:q} {wildcards.dataset:q} --seed {wildcards.seed:q}"
