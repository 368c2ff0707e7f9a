-- The project's own database is made by the image; Prefect keeps its runs in a second one.
CREATE DATABASE prefect OWNER countersign;
