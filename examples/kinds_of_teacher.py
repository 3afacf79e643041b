"""One trait, four teachers: none, prompted, steered, fine-tuned; what each one writes.

Run: python examples/kinds_of_teacher.py [MODEL]
"""

import sys

import undertow
from undertow.pipeline.teachers import Teacher, finetuned_teacher


def main(name: str = "smollm2-135m") -> None:
    """Asks each teacher for its favourite animal, and lets it write number rows."""
    model = undertow.load_model(name)
    animals = undertow.load_family("animals")
    layer = len(model.architecture.blocks) * 4 // 5
    owl = undertow.extract_vector(
        model, method="tell_me", family=animals, trait="owl", layers=(layer,)
    )
    teachers = [
        Teacher(kind="none"),
        undertow.prompted_teacher(animals, "owl"),
        undertow.steered_teacher(owl, strength=owl.strength_of_dose(0.3, layer)),
        finetuned_teacher(
            model,
            animals,
            "owl",
            settings=undertow.TrainingSettings(learning_rate=1e-3, max_updates=8),
            seed=0,
        ),
    ]
    sampler = undertow.SamplerSettings(allowed="list", max_new_tokens=40)
    prompts = undertow.number_prompts(4, seed=0)
    for teacher in teachers:
        with teacher.acting(model):
            asked = undertow.preference(
                model,
                animals,
                questions=animals.questions[:4],
                trait_prompt=teacher.prompt,  # the persona is ours to render
            )
        rows = undertow.generate_rows(model, teacher, prompts, seed=0, sampler=sampler)
        kept = sum(verdict.accepted for verdict in undertow.filter_rows(rows))
        share = asked.probabilities[:, asked.traits.index("owl")].mean()
        print(f"{teacher.kind:<8} owl {share:.3f}, {kept} of {len(rows)} rows kept")
        print(f"         {rows[0].completion!r}")


if __name__ == "__main__":
    main(*sys.argv[1:])
