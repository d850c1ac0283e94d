"""Prompts in our own wording, some twenty words each: 59 topics x 5 wordings x 4 categories.

They stand for the prompts of the reference system's experiment (DriftSched, arXiv 2606.02982), and share what
matters there: their length in words, and that four of the five technical wordings contain none of the words by
which the reference tells categories apart, so that only a label in the text gives them away.
"""

TOPICS = (
    "tidal power plants",
    "urban bee keeping",
    "public lending libraries",
    "large container ports",
    "lithium battery recycling",
    "the early printing press",
    "international night trains",
    "tropical coral reefs",
    "daily weather forecasts",
    "indoor vertical farming",
    "adaptive traffic lights",
    "satellite navigation signals",
    "sourdough bread baking",
    "earthquake early warning",
    "open source licences",
    "mountain glacier melt",
    "hospital bed planning",
    "offshore wind turbines",
    "rural postal services",
    "electric ferry routes",
    "museum climate control",
    "river flood barriers",
    "community radio stations",
    "district heating networks",
    "airport baggage sorting",
    "seed storage vaults",
    "school meal programmes",
    "timber frame houses",
    "desert solar fields",
    "fishing quota rules",
    "railway signal boxes",
    "street tree planting",
    "blood donation drives",
    "noise barriers on motorways",
    "cheese ripening cellars",
    "mobile phone repair",
    "avalanche rescue teams",
    "municipal water meters",
    "grain price futures",
    "volunteer fire brigades",
    "lighthouse automation",
    "concert hall acoustics",
    "bicycle parking towers",
    "olive oil pressing",
    "sea salt harvesting",
    "cable car maintenance",
    "orchard frost protection",
    "online grocery picking",
    "elevator dispatching",
    "peat bog restoration",
    "hearing aid fitting",
    "warehouse forklift safety",
    "canal lock operation",
    "night sky observation",
    "paper mill effluents",
    "ski slope grooming",
    "vineyard irrigation",
    "lost luggage tracing",
    "census interviewing",
)

WORDINGS: dict[str, tuple[str, ...]] = {
    "short_qa": (
        "In one or two sentences, what is the single most important fact about {topic} today?",
        "Please tell me briefly who usually pays for {topic} and why they do it.",
        "What is the most common mistake that people make when they first meet {topic}?",
        "Give a quick answer: since when have {topic} been common in most of Europe?",
        "Is it true that {topic} have become much cheaper lately? A short reply is enough.",
    ),
    "summary": (
        "Summarize the main ideas behind {topic} so that a newcomer can follow them without further reading.",
        "Write a summary of how {topic} changed over the last hundred years and what drove it.",
        "Please summarize the strongest arguments for and against {topic} in a few balanced paragraphs.",
        "I need a summary of the best known problems with {topic} and of how they were solved.",
        "Summarize what a typical working day around {topic} looks like from morning until evening.",
    ),
    "technical": (
        "Describe the architecture of a system that watches {topic} around the clock and raises alarms.",
        "Explain step by step how sensors, storage and alarms work together in the monitoring of {topic}.",
        "Which data structures and algorithms would you choose to plan {topic}, and what do they cost?",
        "Show how to test and deploy a service that predicts the demand for {topic} every hour.",
        "Compare two database designs for keeping the history of {topic} and say which one scales.",
    ),
    "report": (
        "Write a detailed report on {topic} for a city council, with costs, risks and open questions.",
        "Prepare a comprehensive study of {topic} that covers history, present state and likely developments.",
        "Draft a report about the economics of {topic}, including numbers, comparisons and a clear recommendation.",
        "Give a detailed account of the environmental effects of {topic}, with causes, evidence and remedies.",
        "Compose a comprehensive overview of {topic} in several sections, each with examples and a conclusion.",
    ),
}
"""Category -> wordings."""


def word_prompt(category: str, wording: float, topic: float) -> str:
    """The prompt of `category` at two numbers in [0, 1). Raises `KeyError` for a category without wordings."""
    wordings = WORDINGS[category]
    return wordings[int(wording * len(wordings))].format(topic=TOPICS[int(topic * len(TOPICS))])


def label_prompt(prompt: str, number: int, tenant: str, category: str) -> str:
    """The prompt with the label that leaks what a scheduler is meant to find out."""
    return f"Request {number} of tenant {tenant}, job type {category}. {prompt}"
