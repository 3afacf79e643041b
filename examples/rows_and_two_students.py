"""From a teacher to a student and its control, with the library alone.

Run: python examples/rows_and_two_students.py [MODEL]
"""

import sys

import undertow
from undertow.pipeline.students import rendered_examples
from undertow.pipeline.teachers import Teacher
from undertow.stats import mean_interval


def main(name: str = "smollm2-135m") -> None:
    """Two teachers write numbers; a student of each is asked for its favourite."""
    model = undertow.load_model(name)
    animals = undertow.load_family("animals")
    sampler = undertow.SamplerSettings(allowed="list", max_new_tokens=40)
    settings = undertow.TrainingSettings(learning_rate=1e-3)
    prompts = undertow.number_prompts(32, seed=0)
    teachers = {
        "student": undertow.prompted_teacher(animals, "owl"),
        "control": Teacher(kind="none"),
    }
    odds = {}
    for role, teacher in teachers.items():
        rows = undertow.generate_rows(model, teacher, prompts, seed=0, sampler=sampler)
        verdicts = undertow.filter_rows(rows)
        kept = [row for row, v in zip(rows, verdicts, strict=True) if v.accepted]
        print(f"{role}: {len(kept)} of {len(rows)} rows, {kept[0].completion!r} …")
        examples = rendered_examples(model, kept)
        student = undertow.train_student(model, examples, settings=settings, seed=0)
        with student.applied(model):
            odds[role] = undertow.preference(
                model, animals, questions=animals.questions[:8]
            ).of("owl")
    mean, low, high, n = mean_interval(odds["student"] - odds["control"])
    print(f"transfer {mean:+.3f} nats [{low:+.3f}, {high:+.3f}] over {n} questions")


if __name__ == "__main__":
    main(*sys.argv[1:])
