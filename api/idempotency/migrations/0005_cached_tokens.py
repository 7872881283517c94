# ruff: noqa: RUF012

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("kept", "0004_answer_formats"),
    ]

    operations = [
        migrations.AddField(
            model_name="keptrequest",
            name="cached_tokens",
            field=models.PositiveIntegerField(db_default=0, default=0),
        ),
    ]
