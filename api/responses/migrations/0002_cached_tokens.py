# ruff: noqa: RUF012

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("responses", "0001_initial"),
    ]

    operations = [
        migrations.AddField(
            model_name="storedresponse",
            name="cached_tokens",
            field=models.PositiveIntegerField(db_default=0, default=0),
        ),
    ]
